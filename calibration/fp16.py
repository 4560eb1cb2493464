"""Find where a runtime that computes in fp16 would overflow, by the names of layers.

fp16 ends at 65,504. Two problems begin earlier. RMSNorm squares the residual stream, so a norm computed in fp16
overflows where |x| exceeds 255.9. And values on other text may be larger than on the measured text, hence the margin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3_export.calibration.columns import ColumnStatistics
from qwen3_export.calibration.statistics import Statistics
from qwen3_export.graph import Kind, Role, module_name
from qwen3_export.reference.probe import Place, Site

__all__ = ["FP16_MAX", "Fp16Warning", "fp16_warnings"]

FP16_MAX = 65504.0
SQUARE_MAX = FP16_MAX**0.5

# From this part of the range on, other text may well overflow.
MARGIN = 0.25

RESIDUAL = (Place.INPUT, Place.AFTER_ATTENTION, Place.OUTPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp16Warning:
    """``name`` has values |x| up to ``largest`` in ``column``; with ``is_square`` their square overflows."""

    name: str
    largest: float
    column: int
    is_square: bool

    def __str__(self) -> str:
        met = f"{self.name}: |x| up to {self.largest:,.0f} in channel {self.column}"
        if self.is_square:
            return f"{met}, whose square overflows fp16; take this norm in fp32"
        return f"{met}, {self.largest / FP16_MAX:.0%} of what fp16 holds"


def fp16_warnings(statistics: Statistics) -> list[Fp16Warning]:
    """Values near the end of fp16's range, and norms whose squares exceed it, worst first."""
    found = [*_values(statistics), *_norms(statistics)]
    return sorted(found, key=lambda warning: (warning.is_square, -warning.largest))


def _values(statistics: Statistics) -> Iterator[Fp16Warning]:
    named = [(f"{module_name(role)} input", columns) for role, columns in statistics.inputs.items()]
    named += [(str(site), columns) for site, columns in statistics.states.items()]
    for name, columns in named:
        if columns.largest > MARGIN * FP16_MAX:
            yield _warning(name, columns, is_square=False)


def _norms(statistics: Statistics) -> Iterator[Fp16Warning]:
    last = max((site.layer for site in statistics.states if site.layer is not None), default=0)
    for site, columns in statistics.states.items():
        if site.place in RESIDUAL and columns.largest > SQUARE_MAX:
            yield _warning(module_name(_norm_after(site, last)), columns, is_square=True)


def _norm_after(site: Site, last: int) -> Role:
    """The norm that reads the residual stream at this point."""
    assert site.layer is not None
    if site.place is Place.INPUT:
        return Role(Kind.INPUT_LAYERNORM, site.layer)
    if site.place is Place.AFTER_ATTENTION:
        return Role(Kind.POST_ATTENTION_LAYERNORM, site.layer)
    return Role(Kind.NORM) if site.layer == last else Role(Kind.INPUT_LAYERNORM, site.layer + 1)


def _warning(name: str, columns: ColumnStatistics, *, is_square: bool) -> Fp16Warning:
    return Fp16Warning(name=name, largest=columns.largest, column=columns.largest_column, is_square=is_square)
