"""Tables of errors by layer and role; the larger an error, the darker its cell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from statistics import median

from qwen3_export.graph import Kind
from qwen3_export.llama_names import parse_tensor_name
from qwen3_export.parity.html.markup import Markup, join, tag
from qwen3_export.parity.html.numbers import percent
from qwen3_export.parity.values import WeightError

__all__ = ["formats_table", "heat_tables", "output_errors"]

# (role, layer) -> error; the layer is None for weights outside the layers
Errors = Mapping[tuple[str, int | None], float]

ORDER = {kind.value: i for i, kind in enumerate(Kind)}
# An error is an outlier if it is more than so many times the median of its role. In sound files, layers differ by at
# most half of that.
OUTLIER = 4.0
DARKEST = 0.6

CHECKPOINT_NAME = re.compile(r"(?:model\.)?(?:layers\.(\d+)\..*?)?(\w+)")


def heat_tables(errors: Errors, *, caption: str) -> Markup:
    """A table of the errors in the layers, and a line with the errors outside them."""
    inside = {place: error for place, error in errors.items() if place[1] is not None}
    outside = [(role, error) for (role, layer), error in errors.items() if layer is None]
    parts = [tag("div", _layers(inside, caption=caption), class_="wide")] if inside else []
    if outside:
        told = ", ".join(f"{role} {percent(error)}" for role, error in outside)
        parts.append(tag("p", f"Outside the layers: {told}.", class_="soft"))
    return join(parts)


def output_errors(recorded: Mapping[str, object]) -> dict[tuple[str, int | None], float]:
    """Relative errors of outputs by (role, layer), from what an artifact records by the names of its weights.

    Names may be the checkpoint's or llama.cpp's; other names, and what is no number, are passed over. An artifact
    records ratios of squares; the result has their square roots. Experts of a layer are averaged before the root is
    taken.
    """
    gathered: dict[tuple[str, int | None], list[float]] = {}
    for name, error in recorded.items():
        place = _place(name)
        if place is not None and isinstance(error, float):
            gathered.setdefault(place, []).append(error)
    return {place: math.sqrt(max(0.0, sum(found) / len(found))) for place, found in gathered.items()}


def formats_table(errors: Sequence[WeightError]) -> Markup:
    """A table of the errors of each number format: least, median and most over the matrices stored in it."""
    by_format: dict[str, list[float]] = {}
    for error in errors:
        by_format.setdefault(error.format, []).append(error.relative)
    heads = ("format", "matrices", "least", "median", "most")
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", str(len(found))),
            *(tag("td", percent(value)) for value in (min(found), median(found), max(found))),
        )
        for name, found in by_format.items()
    ]
    caption = tag("caption", "Relative error of the stored values, by number format")
    head = tag("thead", tag("tr", *(tag("th", head, scope="col") for head in heads)))
    return tag("div", tag("table", caption, head, tag("tbody", *rows), class_="plain"), class_="wide")


def _layers(errors: Errors, *, caption: str) -> Markup:
    roles = sorted({role for role, _ in errors}, key=lambda role: ORDER.get(role, len(ORDER)))
    layers = sorted({layer for _, layer in errors if layer is not None})
    usual = {role: _median([errors[role, layer] for layer in layers if (role, layer) in errors]) for role in roles}
    most = max((error for (role, _), error in errors.items() if not _is_outlier(error, usual[role])), default=0.0)
    heads = [tag("th", "layer", scope="col"), *(tag("th", _short(role), scope="col", title=role) for role in roles)]
    rows = [
        tag(
            "tr",
            tag("th", str(layer), scope="row"),
            *(_cell(errors.get((role, layer)), most=most, usual=usual[role]) for role in roles),
        )
        for layer in layers
    ]
    head = tag("thead", tag("tr", *heads))
    return tag("table", tag("caption", caption), head, tag("tbody", *rows), class_="heat")


def _cell(error: float | None, *, most: float, usual: float) -> Markup:
    if error is None:
        return tag("td", "–")
    share = DARKEST * min(1.0, error / most) if most > 0 else 0.0
    name = "outlier" if _is_outlier(error, usual) else None
    return tag("td", _short_percent(error), class_=name, style=f"--share: {share:.2f}")


def _is_outlier(error: float, usual: float) -> bool:
    """Outliers get a frame and do not set the scale of the shades, so that the other errors can be told apart."""
    return not math.isfinite(error) or (usual > 0 and error > OUTLIER * usual)


def _short_percent(error: float) -> str:
    """The error in percent, without the percent sign, in about three characters."""
    value = 100 * error
    if not math.isfinite(value):
        return "∞"
    if value == 0:
        return "0"
    return f"{value:.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.995 else f"{value:.2g}"


def _median(errors: Sequence[float]) -> float:
    return median(errors) if errors else 0.0


def _short(role: str) -> str:
    return {"gate": "router"}.get(role, role.removesuffix("_proj"))


def _place(name: str) -> tuple[str, int | None] | None:
    """The role and layer of a weight, from its name in the checkpoint or in llama.cpp; None for other names."""
    role = parse_tensor_name(name)
    if role is not None:
        return role.kind.value, role.layer
    match = CHECKPOINT_NAME.fullmatch(name.removesuffix(".weight"))
    if match is None or match[2] not in ORDER:
        return None
    return match[2], None if match[1] is None else int(match[1])
