"""Norms and scales that are moved a little after codes were chosen; nothing is computed until a weight is read.

Changes that are made in place show at the next reading.

Shapes: # R rows  I columns
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from qwen3_export.graph import ALL_ROWS, DerivedWeight
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values
from qwen3_export.quantizers.weights.protocols import QuantizedWeight, read_quantized, whole_tables

__all__ = ["MOST_OF_A_NORM", "TunedNorm", "TunedWeight"]

# A number of a norm is changed by this share of itself at most, so that a check can tell it from damage.
MOST_OF_A_NORM = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedNorm(DerivedWeight):
    """The weights of a norm, each changed by a share of itself."""

    changes: Values

    @property
    def format(self) -> str:
        return "F32"

    def read(self, rows: slice = ALL_ROWS) -> Values:
        """The changed weights, fp32."""
        values: Values = self.source.read(rows) * (1 + self.changes[rows])
        return values


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedWeight(DerivedWeight):
    """A quantized matrix with relative ``changes`` of its parameters (``NumberFormat.changed``)."""

    source: QuantizedWeight
    changes: Values

    @property
    def number_format(self) -> NumberFormat:
        return self.source.number_format

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        """The codes of the source, and parameters that are changed."""
        first, last = whole_tables(self, rows)
        codes_RI, params = self.source.encode(slice(first, last))
        together = self.shape[0] // len(self.changes)
        return codes_RI, self.number_format.changed(params, self.changes[first // together : last // together])

    def read(self, rows: slice = ALL_ROWS) -> Values:
        """What a runtime computes from the codes, fp32; any rows."""
        return read_quantized(self, rows)
