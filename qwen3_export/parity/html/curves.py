"""The chart of divergence over positions, which shows whether the divergence grows along a text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qwen3_export.parity.curves import CurvePoint
from qwen3_export.parity.html.axes import FLOOR, HEIGHT, WIDTH, Axis, decades, frame, place
from qwen3_export.parity.html.markup import Markup, join, svg, tag
from qwen3_export.parity.html.numbers import scientific

__all__ = ["curve_figure"]

TITLE = "Mean KL divergence over positions"
# The curves that are drawn, each with the dashes of its line: colour alone does not tell them apart
DASHES = {"shipped": "2 3", "quantization": "7 4", "end_to_end": None}

Curves = Mapping[str, Sequence[CurvePoint]]


def curve_figure(curves: Curves) -> Markup:
    """The chart with its legend, and the same numbers as a table that can be unfolded."""
    shown = {name: curves[name] for name in DASHES if curves.get(name)}
    legend = tag("ul", *(tag("li", _swatch(name), name) for name in shown), class_="legend")
    picture = svg(_drawing(shown), width=WIDTH, height=HEIGHT, title=TITLE, description=_description(shown))
    table = tag("details", tag("summary", "The numbers"), tag("div", _table(shown), class_="wide"))
    return join([tag("figure", legend, picture), table])


def _drawing(curves: Curves) -> Markup:
    finite = [point.mean_kld for points in curves.values() for point in points if math.isfinite(point.mean_kld)]
    up = decades(finite, title="nats (log scale)")
    across = _positions([point.last for points in curves.values() for point in points])
    return join([frame(across, up), *(_series(name, points, across, up) for name, points in curves.items())])


def _positions(lasts: Sequence[int]) -> Axis:
    """The axis of positions, by log2(position + 1) so that position 0 has a place."""
    high = math.log2(max(lasts) + 1)
    marks = [0] + [1 << exponent for exponent in range(max(lasts).bit_length()) if 1 << exponent <= max(lasts)]
    step = -(-len(marks) // 8)
    ticks = tuple((math.log2(mark + 1), f"{mark:,}") for mark in marks[::step])
    return Axis(low=0.0, high=high, ticks=ticks, title="position in the text (log scale)")


def _series(name: str, points: Sequence[CurvePoint], across: Axis, up: Axis) -> Markup:
    """One curve: a mark in the middle of each range, and a line through the marks.

    Ranges whose mean is not finite are left out.
    """
    places = [
        place(_middle(point), math.log10(max(point.mean_kld, FLOOR)), across=across, up=up)
        for point in points
        if math.isfinite(point.mean_kld)
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    marks = [tag("circle", class_="mark", cx=round(x, 1), cy=round(y, 1), r=3) for x, y in places]
    drawn = tag("polyline", class_="series", points=line, stroke_dasharray=DASHES[name])
    return tag("g", drawn, *marks, style=f"--series: var(--{name})")


def _middle(point: CurvePoint) -> float:
    return (math.log2(point.first + 1) + math.log2(point.last + 1)) / 2


def _swatch(name: str) -> Markup:
    line = tag("line", class_="series", x1=1, x2=31, y1=6, y2=6, stroke_dasharray=DASHES[name])
    return tag("svg", line, viewBox="0 0 32 12", aria_hidden="true", style=f"--series: var(--{name})")


def _description(curves: Curves) -> str:
    parts = [
        f"{name} goes from {scientific(points[0].mean_kld)} at position {points[0].first} to "
        f"{scientific(points[-1].mean_kld)} at position {points[-1].last}"
        for name, points in curves.items()
    ]
    return "; ".join(parts) + "."


def _table(curves: Curves) -> Markup:
    heads = tag("tr", *(tag("th", head, scope="col") for head in ("positions", *curves)))
    firsts = sorted({(point.first, point.last) for points in curves.values() for point in points})
    found = {(name, point.first): point.mean_kld for name, points in curves.items() for point in points}
    rows = [
        tag(
            "tr",
            tag("th", f"{first:,}" if first == last else f"{first:,}–{last:,}", scope="row"),
            *(tag("td", scientific(found.get((name, first)))) for name in curves),
        )
        for first, last in firsts
    ]
    caption = tag("caption", "Mean KL divergence in nats, by position in the text")
    return tag("table", caption, tag("thead", heads), tag("tbody", *rows), class_="plain")
