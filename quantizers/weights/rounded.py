"""Weights rounded to the nearest values of a number format, when they are read.

Nothing is computed when a graph is rounded. A target that walks through it block of rows by block of rows holds no more
than those rows, whatever the size of the model.

Shapes: # R rows  I columns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Weight
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values
from qwen3_export.quantizers.weights.protocols import read_quantized, whole_tables

__all__ = ["RoundedWeight", "check_fits", "round_graph"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedWeight(DerivedWeight):
    """Another weight in a number format.

    ``importance`` [in_features] weighs the error of each input column when parameters are chosen: the mean of its
    squared activations.
    """

    number_format: NumberFormat
    importance: np.ndarray | None = None

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        """Codes and parameters of a block of rows; a vector is one row.

        Raises QuantizationError, with the weight's name, for what the format cannot hold, and for a block that cuts
        through rows that share parameters.
        """
        values_RI = np.atleast_2d(self.source.read(slice(*whole_tables(self, rows))))
        try:
            return self.number_format.encode(values_RI, self.importance)
        except QuantizationError as error:
            raise QuantizationError(f"{self.name}: {error}") from error

    def read(self, rows: slice = ALL_ROWS) -> Values:
        """What a runtime computes from the codes, fp32; any rows."""
        return read_quantized(self, rows)


def round_graph(
    graph: Graph, formats: Mapping[str, NumberFormat], *, importance: Mapping[str, np.ndarray] | None = None
) -> Graph:
    """The graph with each weight that ``formats`` names in its format; the others stay as they are.

    ``importance`` maps weight names to vectors [in_features]; weights that it lacks are rounded without. Raises
    QuantizationError for a name that is not in the graph, a format that does not fit the weight's shape (vectors are
    kept as floats), and an importance of another width.
    """
    unknown = formats.keys() - graph.weights.keys()
    if unknown:
        raise QuantizationError(f"{min(unknown)}: there is no such weight in this model")
    weights = dict(graph.weights)
    for name, number_format in formats.items():
        weight = graph.weights[name]
        check_fits(weight, number_format)
        weights[name] = RoundedWeight(
            source=weight, number_format=number_format, importance=_importance_of(weight, importance or {})
        )
    return graph.with_weights(MappingProxyType(weights))


def check_fits(weight: Weight, number_format: NumberFormat) -> None:
    """Raise QuantizationError, with the weight's name, where it cannot be stored in this format."""
    if len(weight.shape) == 1 and not number_format.is_float:
        raise QuantizationError(f"{weight.name}: a vector is not quantized to {number_format.name}; use F32")
    try:
        number_format.check(weight.shape)
    except QuantizationError as error:
        raise QuantizationError(f"{weight.name}: {error}") from error


def _importance_of(weight: Weight, importance: Mapping[str, np.ndarray]) -> np.ndarray | None:
    vector = importance.get(weight.name)
    if vector is not None and vector.shape != (weight.shape[-1],):
        raise QuantizationError(
            f"{weight.name}: in_features is {weight.shape[-1]}, its importance has {vector.size} values; "
            "the importance matrix is another model's"
        )
    return vector
