"""The chart of size against quality: what each recipe costs, for what it saves."""

from __future__ import annotations

import math
from collections.abc import Sequence

from qwen3_export.parity.html.axes import BOTTOM, HEIGHT, LEFT, WIDTH, Axis, decades, frame, place
from qwen3_export.parity.html.markup import Markup, join, svg, tag
from qwen3_export.parity.html.numbers import bytes_text, scientific
from qwen3_export.parity.report import Report

__all__ = ["scatter_figure"]

TITLE = "Size against quality"
# Told apart by shape first: paths around the origin, some nine pixels across
SHAPES = {
    "gguf": "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",
    "onnx": "M-3.9-3.9h7.8v7.8h-7.8z",
    "executorch": "M0-5L5 4h-10z",
    "coreml": "M0-5.5L5.5 0L0 5.5L-5.5 0z",
}
OTHER_SHAPE = "M-5-1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z"
COLOURS = {"gguf": "shipped", "onnx": "quantization", "executorch": "pass", "coreml": "end_to_end"}

# A label of so many pixels a character goes to the first of these places (dx, dy, anchor) where nothing is yet.
CHARACTER, LINE = 6.8, 12
AROUND = (
    (10, 4, "start"), (-10, 4, "end"), (0, -10, "middle"), (0, 17, "middle"),
    (8, -6, "start"), (-8, -6, "end"), (8, 14, "start"), (-8, 14, "end"),
)  # fmt: skip

Box = tuple[float, float, float, float]  # left, top, right, bottom


def scatter_figure(reports: Sequence[Report]) -> Markup:
    """The chart, with a legend of the targets; nothing where no two artifacts ran."""
    shown = [report for report in reports if math.isfinite(report.end_to_end.mean_kld or math.inf)]
    if len(shown) < 2:
        return Markup("")
    targets = list(dict.fromkeys(report.target for report in shown))
    legend = tag("ul", *(tag("li", _swatch(target), target) for target in targets), class_="legend")
    description = "; ".join(_described(report) for report in shown) + "."
    picture = svg(_drawing(shown), width=WIDTH, height=HEIGHT, title=TITLE, description=description)
    caption = tag("figcaption", "Mean KL divergence end to end; smaller and lower is better. Ringed: out of bounds.")
    return tag("figure", legend, picture, caption)


def _described(report: Report) -> str:
    numbers = scientific(report.end_to_end.mean_kld)
    return f"{report.target} {_name(report)}: {bytes_text(report.size_bytes)}, {numbers}"


def _drawing(reports: Sequence[Report]) -> Markup:
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
        marks.append(_mark(report, x, y))
        label, box = _label(_name(report), x, y, taken)
        taken.append(box)
        labels.append(label)
    return join([frame(across, up), *marks, *labels])


def _sizes(sizes: Sequence[int]) -> Axis:
    """Bytes over a range a little wider than what there is, with ticks at round numbers."""
    margin = 0.08 * ((max(sizes) - min(sizes)) or max(sizes))
    low, high = max(0.0, min(sizes) - margin), max(sizes) + margin
    step = _round_step((high - low) / 4)
    ticks = [count * step for count in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return Axis(
        low=low, high=high, ticks=tuple((tick, bytes_text(tick)) for tick in ticks), title="size of the artifact"
    )


def _round_step(rough: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)


def _mark(report: Report, x: float, y: float) -> Markup:
    moved = f"translate({x:.1f} {y:.1f})"
    shape = tag("path", class_="mark", d=SHAPES.get(report.target, OTHER_SHAPE))
    ring = tag("circle", r=7.5, fill="none", class_="bad") if report.verdict == "fail" else ""
    return tag("g", shape, ring, transform=moved, style=_colour(report.target))


def _label(text: str, x: float, y: float, taken: Sequence[Box]) -> tuple[Markup, Box]:
    """The label where it hides least, and the box that it takes."""
    candidates = [(_box(text, x + dx, y + dy, anchor), dx, dy, anchor) for dx, dy, anchor in AROUND]
    box, dx, dy, anchor = min(candidates, key=lambda candidate: _cost(candidate[0], taken))
    return tag("text", text, class_="label", x=round(x + dx, 1), y=round(y + dy, 1), text_anchor=anchor), box


def _box(text: str, x: float, y: float, anchor: str) -> Box:
    width = CHARACTER * len(text)
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, y - LINE + 2, left + width, y + 2


def _cost(box: Box, taken: Sequence[Box]) -> float:
    """What it would hide, in pixels; leaving the frame, and covering the numbers beside it, is worst."""
    left, top, right, bottom = box
    outside = max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, -top) + max(0.0, bottom - HEIGHT + BOTTOM)
    overlaps = (
        max(0.0, min(right, other[2]) - max(left, other[0])) * max(0.0, min(bottom, other[3]) - max(top, other[1]))
        for other in taken
    )
    return 1000 * outside + sum(overlaps)


def _name(report: Report) -> str:
    return report.recipe if report.method in ("rtn", "unknown") else f"{report.recipe} {report.method}"


def _swatch(target: str) -> Markup:
    path = tag("path", class_="mark", d=SHAPES.get(target, OTHER_SHAPE), transform="translate(16 6)")
    return tag("svg", path, viewBox="0 0 32 12", aria_hidden="true", style=_colour(target))


def _colour(target: str) -> str:
    return f"--series: var(--{COLOURS.get(target, 'soft')})"
