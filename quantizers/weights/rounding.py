"""One weight under any number format, rounded when it is read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.ggml import GGML_FORMATS, GgmlFormat
from qwen3_export.quantizers.weights.coded import CodedFormat, RoundedWeight
from qwen3_export.quantizers.weights.quantized import QuantizedWeight

__all__ = ["UNBLOCKED", "round_graph", "round_weight", "weighted_error"]

UNBLOCKED = frozenset({"F32", "F16", "BF16"})
"""Formats without blocks: there is nothing to choose in them."""

VALUES_PER_BLOCK = 1 << 21


def round_weight(
    weight: Weight, number_format: GgmlFormat | CodedFormat, importance: np.ndarray | None = None
) -> Weight:
    """The weight rounded to nearest; ``importance`` [in_features] weighs each column when scales are searched."""
    if isinstance(number_format, GgmlFormat):
        return QuantizedWeight(source=weight, number_format=number_format, importance=importance)
    return RoundedWeight(source=weight, number_format=number_format, importance=importance)


def round_graph(graph: Graph, formats: Mapping[str, str | CodedFormat]) -> Graph:
    """Every weight in its format (a GGML format by its name), rounded to nearest when it is read."""
    weights = {}
    for weight in graph:
        number_format = formats[weight.name]
        weights[weight.name] = round_weight(
            weight, GGML_FORMATS[number_format] if isinstance(number_format, str) else number_format
        )
    return graph.with_weights(weights)


def weighted_error(stored: Weight, exact: Weight, importance: np.ndarray) -> float:
    """Σ importance · (stored - exact)² over Σ importance · exact²: the output error if columns were independent."""
    rows, columns = exact.shape
    step = max(1, VALUES_PER_BLOCK // columns)
    lost = whole = 0.0
    for first in range(0, rows, step):
        block = slice(first, min(first + step, rows))
        exact_RI = exact.read(block)
        lost += float((np.square(stored.read(block) - exact_RI) @ importance).sum(dtype=np.float64))
        whole += float((np.square(exact_RI) @ importance).sum(dtype=np.float64))
    return lost / whole if whole else 0.0
