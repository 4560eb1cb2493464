"""Read saved reports back: the inverse of ``report.save_report``.

JSON has no infinity, so numbers that were not finite are saved as null. A number that was measured and is null becomes
infinite again. Fields added by newer versions are ignored, and fields that an older version did not write keep their
defaults.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from qwen3_export.errors import ExportError
from qwen3_export.files.json_file import parse_json
from qwen3_export.files.shown import shown
from qwen3_export.parity.curves import CurvePoint
from qwen3_export.parity.metrics import Comparison
from qwen3_export.parity.report import NUMBERS, Decode, FirstDivergence, Gates, Report, Runtime, Sampling
from qwen3_export.parity.values import WeightError

__all__ = ["parse_report", "read_report"]

MEASURED = ("mean_kld", "p99_kld", "max_kld", "max_abs", "perplexity_ratio")
LISTS = ("metadata", "notes", "values", "gates")

# Sizes and numbers of a report are far below; a larger one cannot be turned into a float.
MOST = 1 << 64

Record = TypeVar("Record")


class _WrongFieldError(ValueError):
    """A field that holds a value of another type than reports do."""


def read_report(path: Path) -> Report:
    """Read a report that ``qwen3-export check --json`` wrote. Raises ExportError if the file holds none."""
    try:
        return parse_report(parse_json(path.read_bytes()))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read ({error.strerror}); give a report that was saved as JSON") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f" ({error})" if isinstance(error, _WrongFieldError) else ""
        raise ExportError(f"{path}: no parity report{reason}; give a report that was saved as JSON") from error


def parse_report(document: Mapping[str, Any]) -> Report:
    """The report of a JSON document.

    Raises ValueError, TypeError, KeyError or AttributeError if the document is no report.
    """
    parsed: dict[str, Any] = {name: _comparison(document[name]) for name in NUMBERS}
    parsed["floor"] = _comparison(document.get("floor", {}))
    parsed["decode"] = _record(Decode, document["decode"])
    parsed["runtime"] = _record(Runtime, document["runtime"])
    parsed |= {name: _listed(document.get(name, ())) for name in LISTS}
    if document.get("first_divergence"):
        parsed["first_divergence"] = _divergence(document["first_divergence"])
    if document.get("sampled"):
        sampled = document["sampled"]
        parsed["sampled"] = _record(Sampling, {**sampled, "prompts": _listed(sampled["prompts"])})
    parsed["bounds"] = _record(Gates, document.get("bounds", {}))
    parsed["curves"] = {
        name: tuple(_record(CurvePoint, _finite_or_infinite(point)) for point in points)
        for name, points in document.get("curves", {}).items()
    }
    parsed["weight_errors"] = tuple(
        _record(WeightError, {**error, "relative": _or_infinite(error["relative"])})
        for error in document.get("weight_errors", ())
    )
    return _record(Report, {**document, **parsed})


def _comparison(found: Mapping[str, Any]) -> Comparison:
    if found.get("status", "not_run") == "not_run":
        return _record(Comparison, found)
    return _record(Comparison, {**found, **{name: _or_infinite(found.get(name)) for name in MEASURED}})


def _divergence(found: Mapping[str, Any]) -> FirstDivergence:
    return _record(FirstDivergence, {**found, "relative": _or_infinite(found.get("relative"))})


def _finite_or_infinite(point: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _or_infinite(value) for name, value in point.items()}


def _or_infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _listed(value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"{shown(value)} is no list")
    return tuple(value)


def _record(kind: type[Record], found: Mapping[str, Any]) -> Record:
    """The dataclass with the fields of a JSON object; unknown keys are ignored, values of other types refused."""
    known, types = {field.name for field in fields(kind)}, get_type_hints(kind)  # type: ignore[arg-type]
    for name in known & found.keys():
        if not _fits(found[name], types[name]):
            raise _WrongFieldError(f"its {name} is {shown(found[name])}")
    return kind(**{name: value for name, value in found.items() if name in known})


def _fits(value: object, wanted: Any) -> bool:
    """Whether a value is of an annotated type; whole numbers count as floats."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is UnionType:
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(each, inner[0]) for each in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(_fits(each, inner[1]) for each in value.values())
    if wanted in (int, float):
        is_whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < MOST
        return is_whole or (wanted is float and isinstance(value, float))
    return wanted is Any or isinstance(value, wanted)
