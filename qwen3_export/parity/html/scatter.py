"""The chart of size against quality: a point for each artifact, by its size and its divergence end to end."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qwen3_export.parity.html.axes import BOTTOM, HEIGHT, LEFT, WIDTH, Axis, decades, frame, place
from qwen3_export.parity.html.markup import Markup, join, svg, tag
from qwen3_export.parity.html.numbers import bytes_text, scientific
from qwen3_export.parity.report import Report

__all__ = ["scatter_figure"]

TITLE = "Size against quality"
# Labels are laid out as if each character were so wide and each line so high, in pixels. A label is tried at each of
# these places around its point (dx, dy, anchor), and goes to the one where it hides least.
CHARACTER, LINE = 6.8, 12
AROUND = (
    (10, 4, "start"), (-10, 4, "end"), (0, -10, "middle"), (0, 17, "middle"),
    (8, -6, "start"), (-8, -6, "end"), (8, 14, "start"), (-8, 14, "end"),
)  # fmt: skip

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True, slots=True)
class _Style:
    """How a target's points look: an SVG path around the origin, about nine pixels across, and a colour of the page."""

    shape: str
    colour: str


# Given to targets in this order. Shapes differ, so that targets can be told apart without colours.
STYLES = (
    _Style("M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z", "shipped"),  # circle
    _Style("M-3.9-3.9h7.8v7.8h-7.8z", "quantization"),  # square
    _Style("M0-5L5 4h-10z", "pass"),  # triangle
    _Style("M0-5.5L5.5 0L0 5.5L-5.5 0z", "end_to_end"),  # diamond
)
# A cross, for every target after these
LAST_STYLE = _Style("M-5-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z", "soft")


def scatter_figure(reports: Sequence[Report], *, targets: Sequence[str] = ()) -> Markup:
    """The chart with its legend, or nothing if fewer than two artifacts have a finite divergence.

    Targets get their shapes and colours in the order of ``targets``, then in the order of the reports.
    """
    shown = [report for report in reports if _has_divergence(report)]
    if len(shown) < 2:
        return Markup("")
    styles = _styles([*targets, *(report.target for report in reports)])
    found = dict.fromkeys(report.target for report in shown)
    legend = tag("ul", *(tag("li", _swatch(styles[target]), target) for target in found), class_="legend")
    description = "; ".join(_described(report) for report in shown) + "."
    picture = svg(_drawing(shown, styles), width=WIDTH, height=HEIGHT, title=TITLE, description=description)
    caption = tag("figcaption", "Mean KL divergence end to end; smaller and lower is better. Ringed: out of bounds.")
    return tag("figure", legend, picture, caption)


def _styles(targets: Iterable[str]) -> dict[str, _Style]:
    """A style for each target, by the order in which targets are named first."""
    return {target: STYLES[i] if i < len(STYLES) else LAST_STYLE for i, target in enumerate(dict.fromkeys(targets))}


def _has_divergence(report: Report) -> bool:
    kld = report.end_to_end.mean_kld
    return kld is not None and math.isfinite(kld)


def _described(report: Report) -> str:
    numbers = scientific(report.end_to_end.mean_kld)
    return f"{report.target} {_name(report)}: {bytes_text(report.size_bytes)}, {numbers}"


def _drawing(reports: Sequence[Report], styles: Mapping[str, _Style]) -> Markup:
    klds = [report.end_to_end.mean_kld or 0.0 for report in reports]
    across, up = _sizes([report.size_bytes for report in reports]), decades(klds, title="nats (log scale)")
    exponents = [max(up.low, math.log10(kld)) if kld > 0 else up.low for kld in klds]
    places = [
        place(report.size_bytes, exponent, across=across, up=up)
        for report, exponent in zip(reports, exponents, strict=True)
    ]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    marks, labels = [], []
    for report, (x, y) in zip(reports, places, strict=True):
        marks.append(_mark(report, x, y, style=styles[report.target]))
        label, box = _label(_name(report), x, y, taken)
        taken.append(box)
        labels.append(label)
    return join([frame(across, up), *marks, *labels])


def _sizes(sizes: Sequence[int]) -> Axis:
    """The axis of sizes in bytes: a little wider than the sizes themselves, with ticks at round numbers."""
    margin = 0.08 * ((max(sizes) - min(sizes)) or max(sizes))
    low, high = max(0.0, min(sizes) - margin), max(sizes) + margin
    step = _round_step((high - low) / 4)
    ticks = [count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(
        low=low, high=high, ticks=tuple((tick, bytes_text(tick)) for tick in ticks), title="size of the artifact"
    )


def _round_step(rough: float) -> float:
    """The next step of the form 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _mark(report: Report, x: float, y: float, *, style: _Style) -> Markup:
    moved = f"translate({x:.1f} {y:.1f})"
    shape = tag("path", class_="mark", d=style.shape)
    ring = tag("circle", r=7.5, fill="none", class_="bad") if report.verdict == "fail" else ""
    return tag("g", shape, ring, transform=moved, style=_colour(style))


def _label(text: str, x: float, y: float, taken: Sequence[Box]) -> tuple[Markup, Box]:
    """The label at the place where it hides least, and the box that it fills."""
    candidates = [(_box(text, x + dx, y + dy, anchor), dx, dy, anchor) for dx, dy, anchor in AROUND]
    box, dx, dy, anchor = min(candidates, key=lambda candidate: _cost(candidate[0], taken))
    return tag("text", text, class_="label", x=round(x + dx, 1), y=round(y + dy, 1), text_anchor=anchor), box


def _box(text: str, x: float, y: float, anchor: str) -> Box:
    width = CHARACTER * len(text)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - LINE + 2, left + width, y + 2


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """How bad a place is: the area it covers of what is already drawn, in square pixels.

    Reaching out of the frame, over the numbers of the axes, counts far more.
    """
    left, top, right, bottom = box
    outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, -top) + max(0.0, bottom - HEIGHT + BOTTOM)
    overlaps = (
        max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(bottom, other[3]) - max(top, other[1]))
        for other in taken
    )
    return 1000 * outside + sum(overlaps)


def _name(report: Report) -> str:
    return report.recipe if report.method in ("rtn", "unknown") else f"{report.recipe} {report.method}"


def _swatch(style: _Style) -> Markup:
    path = tag("path", class_="mark", d=style.shape, transform="translate(16 6)")
    return tag("svg", path, viewBox="0 0 32 12", aria_hidden="true", style=_colour(style))


def _colour(style: _Style) -> str:
    return f"--series: var(--{style.colour})"
