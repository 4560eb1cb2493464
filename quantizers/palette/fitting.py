"""Find the lookup tables for rows of weights: sorts the weights of each table and runs the clustering.

Shapes: # R rows  I columns  L tables  E entries a table  N weights that share a table
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.palette.kmeans import cluster

__all__ = ["fit_tables"]

Values = NDArray[np.float32]


def fit_tables(values_RI: Values, importance: Values | None, *, tables: int, entries: int) -> Values:
    """The entries of each table, ascending, [L, E]."""
    if importance is not None and importance.shape not in (values_RI.shape, values_RI.shape[1:]):
        raise QuantizationError(f"`importance` of shape {importance.shape} does not fit weights of {values_RI.shape}")
    table_LE = np.empty((tables, entries), np.float32)
    blocks = np.split(np.ascontiguousarray(values_RI, np.float32), tables)
    for i, block in enumerate(blocks):
        first = i * block.shape[0]
        weights = importance
        if importance is not None and importance.ndim == 2:
            weights = importance[first : first + block.shape[0]]
        table_LE[i] = _fit_table(block, weights, entries)
    return table_LE


def _fit_table(block: Values, importance: Values | None, entries: int) -> Values:
    """The entries of one table: the weights in ascending order, with their importances, are clustered."""
    values_N = block.reshape(-1)
    if importance is None:
        return cluster(np.sort(values_N), np.empty(0, np.float32), entries)
    weights_N = np.broadcast_to(importance, block.shape).reshape(-1)
    if not weights_N.any():
        return cluster(np.sort(values_N), np.empty(0, np.float32), entries)
    order = np.argsort(values_N, kind="stable")
    return cluster(values_N[order], np.ascontiguousarray(weights_N[order], np.float32), entries)
