"""Weights that are quantized when they are read: a number format laid over a weight of the graph.

Nothing is computed when a graph is quantized; a target that walks through it block of rows by block of rows
therefore holds no more than those rows, whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Weight
from qwen3_export.quantizers.ggml import GGML_FORMATS, GgmlFormat

__all__ = ["BlockWeight", "QuantizedWeight", "quantize"]


@runtime_checkable
class BlockWeight(Weight, Protocol):
    """A weight whose rows are stored as bytes: what a writer of GGML's blocks needs to know of it."""

    @property
    def row_bytes(self) -> int: ...

    def encode(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The stored bytes of a block of rows, uint8 [rows, row_bytes]; a vector is one row."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedWeight(DerivedWeight):
    """A weight in one of GGML's number formats.

    ``importance`` [in_features] weighs each input column's error when the stored values are chosen: the mean of
    its squared activations (llama.cpp's importance matrix).
    """

    number_format: GgmlFormat
    importance: np.ndarray | None = None

    @property
    def format(self) -> str:
        return self.number_format.name

    @property
    def row_bytes(self) -> int:
        return self.number_format.row_bytes(self.shape[-1])

    def encode(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The stored bytes of a block of rows, uint8 [rows, row_bytes]; a vector is one row."""
        values = self.source.read(rows)
        try:
            return self.number_format.encode(np.atleast_2d(values), self.importance)
        except QuantizationError as error:
            raise QuantizationError(f"{self.name}: {error}") from error

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """What a runtime will read from the stored bytes, fp32."""
        values = self.number_format.decode(self.encode(rows))
        return values[0] if len(self.shape) == 1 else values


def quantize(graph: Graph, formats: Mapping[str, str], *, importance: Mapping[str, np.ndarray] | None = None) -> Graph:
    """The graph with each weight in the number format that ``formats`` gives for its name.

    ``importance`` maps weight names to vectors [in_features]; weights that it lacks are quantized without.
    Raises QuantizationError for a format that the weight's rows do not fit, or an importance of another width.
    """
    weights: dict[str, Weight] = {}
    for weight in graph:
        number_format = GGML_FORMATS[formats[weight.name]]
        number_format.row_bytes(weight.shape[-1])
        weights[weight.name] = QuantizedWeight(
            source=weight, number_format=number_format, importance=_importance_of(weight, importance or {})
        )
    return graph.with_weights(MappingProxyType(weights))


def _importance_of(weight: Weight, importance: Mapping[str, np.ndarray]) -> np.ndarray | None:
    vector = importance.get(weight.name)
    if vector is not None and vector.shape != (weight.shape[-1],):
        raise QuantizationError(
            f"{weight.name}: in_features is {weight.shape[-1]}, its importance has {vector.size} values; "
            "the importance matrix is another model's"
        )
    return vector
