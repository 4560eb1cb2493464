"""The frame and the axes that both charts share."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from qwen3_export.parity.html.markup import Markup, join, tag
from qwen3_export.parity.html.numbers import power_of_ten

__all__ = ["BOTTOM", "FLOOR", "HEIGHT", "LEFT", "WIDTH", "Axis", "decades", "frame", "place"]

# In pixels. About as wide as a phone, so that text has the same size there as elsewhere
WIDTH, HEIGHT = 360, 240
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 40
# A divergence of zero is drawn here: smaller than any that float64 can measure
FLOOR = 1e-16
MOST_TICKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of a chart, from ``low`` to ``high``.

    Values are on the scale of the axis: for a logarithmic axis, they are logarithms. ``ticks`` are the values that are
    marked, each with its label.
    """

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    title: str

    def share(self, value: float) -> float:
        """Where a value lies on the axis, from 0 at ``low`` to 1 at ``high``."""
        return (value - self.low) / ((self.high - self.low) or 1.0)


def decades(values: Iterable[float], *, title: str) -> Axis:
    """A logarithmic axis (log10) that holds all values and begins and ends at powers of ten.

    Values below FLOOR count as FLOOR.
    """
    exponents = [math.log10(max(value, FLOOR)) for value in values]
    low = math.floor(min(exponents, default=-1))
    high = max(math.ceil(max(exponents, default=0)), low + 1)
    step = -(-(high - low) // MOST_TICKS)
    return Axis(
        low=low,
        high=high,
        ticks=tuple((exponent, power_of_ten(exponent)) for exponent in range(low, high + 1, step)),
        title=title,
    )


def place(x: float, y: float, *, across: Axis, up: Axis) -> tuple[float, float]:
    """The pixel (x from the left, y from the top) of a point, given on the scales of the axes."""
    return (
        LEFT + across.share(x) * (WIDTH - LEFT - RIGHT),
        HEIGHT - BOTTOM - up.share(y) * (HEIGHT - TOP - BOTTOM),
    )


def frame(across: Axis, up: Axis) -> Markup:
    """The labels of both axes, and the horizontal grid lines."""
    parts = [_across_tick(value, label, across) for value, label in across.ticks]
    parts += [_up_tick(value, label, up) for value, label in up.ticks]
    bottom = HEIGHT - 6
    parts.append(tag("text", across.title, x=(LEFT + WIDTH - RIGHT) / 2, y=bottom, text_anchor="middle"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    turned = f"rotate(-90 10 {middle:g})"
    parts.append(tag("text", up.title, x=10, y=middle, text_anchor="middle", transform=turned))
    return tag("g", *parts)


def _across_tick(value: float, label: str, axis: Axis) -> Markup:
    x = LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)
    return tag("text", label, x=round(x, 1), y=HEIGHT - BOTTOM + 15, text_anchor="middle")


def _up_tick(value: float, label: str, axis: Axis) -> Markup:
    y = round(HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - TOP - BOTTOM), 1)
    line = tag("line", class_="grid-line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y)
    return join([line, tag("text", label, x=LEFT - 6, y=y + 4, text_anchor="end")])
