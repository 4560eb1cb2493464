"""Weights of the graph as codes: rounded when they are read, or holding what a solver chose.

Both say what a target packs (``encode``: codes and parameters) and what the reference multiplies with (``read``: what
a runtime computes from them). Nothing is computed when a graph is quantized with ``RoundedWeight``; a target that walks
through it block of rows by block of rows holds no more than those rows, whatever the size of the model.

Shapes: # R rows  I columns
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Role, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.palette import PaletteFormat

__all__ = ["CodedFormat", "CodedWeight", "EncodedWeight", "RoundedWeight", "read_coded", "round_weights"]

CodedFormat = AffineFormat | PaletteFormat


@runtime_checkable
class CodedWeight(Weight, Protocol):
    """A weight stored as codes and parameters."""

    @property
    def number_format(self) -> CodedFormat: ...

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, Any]:
        """Codes [R, I] of a block of rows, and their parameters (``AffineParams`` or ``PaletteParams``)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundedWeight(DerivedWeight):
    """A weight rounded to nearest in an affine or palette format, when it is read.

    ``importance`` [in_features] weighs each input column's error when scales or tables are chosen. Where rows share a
    table, a block of rows must hold whole tables.
    """

    number_format: CodedFormat
    importance: np.ndarray | None = None

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, Any]:
        """Codes and parameters of a block of rows."""
        first, last, _ = rows.indices(self.shape[0])
        together = self.number_format.rows_together or self.shape[0]
        if first % together or (last - first) % together:
            raise QuantizationError(f"{self.name}: rows {first} to {last} cut through a table of {together} rows")
        try:
            return self.number_format.encode(self.source.read(slice(first, last)), self.importance)
        except QuantizationError as error:
            raise QuantizationError(f"{self.name}: {error}") from error

    def codes(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The codes alone."""
        return self.encode(rows)[0]

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """What a runtime computes from the codes, fp32; any rows, whole tables are read around them."""
        return read_coded(self, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedWeight:
    """A weight whose codes and parameters a solver has chosen; it holds them whole."""

    name: str
    role: Role
    number_format: CodedFormat
    codes_RI: np.ndarray
    params: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes_RI.shape

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, Any]:
        """Codes and parameters of a block of rows."""
        first, last, _ = rows.indices(self.shape[0])
        return self.codes_RI[first:last], self.params.rows(slice(first, last), of=self.shape[0])

    def codes(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The codes alone."""
        return self.codes_RI[rows]

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """What a runtime computes from the codes, fp32; any rows."""
        return read_coded(self, rows)


def round_weights(
    graph: Graph, formats: Mapping[str, CodedFormat], *, importance: Mapping[str, np.ndarray] | None = None
) -> Graph:
    """The graph with each weight that ``formats`` names rounded to that format; the others stay as they are.

    ``importance`` maps weight names to vectors [in_features]. Raises QuantizationError for a name that is not in the
    graph, a weight that is no matrix, and a format that does not fit the weight's shape.
    """
    unknown = formats.keys() - graph.weights.keys()
    if unknown:
        raise QuantizationError(f"{min(unknown)}: there is no such weight in this model")
    weights = dict(graph.weights)
    for name, number_format in formats.items():
        weight = graph.weights[name]
        if len(weight.shape) != 2:
            raise QuantizationError(f"{name}: a vector is not quantized to {number_format.name}; leave it out")
        try:
            number_format.check(weight.shape)
        except QuantizationError as error:
            raise QuantizationError(f"{name}: {error}") from error
        weights[name] = RoundedWeight(
            source=weight, number_format=number_format, importance=(importance or {}).get(name)
        )
    return graph.with_weights(MappingProxyType(weights))


def read_coded(weight: CodedWeight, rows: slice) -> np.ndarray:
    """The values of a block of rows: whole tables (or single rows) around it are decoded, and the block is kept."""
    count = weight.shape[0]
    first, last, _ = rows.indices(count)
    together = weight.number_format.rows_together or count
    start, stop = first // together * together, min(-(-last // together) * together, count)
    codes_RI, params = weight.encode(slice(start, stop))
    return weight.number_format.dequantize(codes_RI, params)[first - start : last - start]
