"""Read the fields of ``config.json`` as the types that they must have.

Every function returns the value, or the default where the field is missing or null, and raises UnsupportedModelError,
which names the field, for a value of another type.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from qwen3_export.errors import UnsupportedModelError
from qwen3_export.files.shown import shown

__all__ = ["boolean", "integer", "layer_numbers", "number", "text", "wrong_type"]


def integer(document: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """A whole number, which some writers state as 32768.0."""
    value = _stated(document, name, default)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise wrong_type(name, value, "a whole number")


def number(document: Mapping[str, Any], name: str, *, default: float | None = None) -> float:
    value = _stated(document, name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and abs(value) <= sys.float_info.max:  # neither NaN nor infinite, nor an integer beyond all floats
        return float(value)
    raise wrong_type(name, value, "a number")


def boolean(document: Mapping[str, Any], name: str) -> bool:
    """True or false; false where the field is missing or null."""
    value = document.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise wrong_type(name, value, "true or false")


def text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None or isinstance(value, str):
        return value
    raise wrong_type(name, value, "text")


def layer_numbers(document: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A list of layer numbers; none where the field is missing or null."""
    value = document.get(name) or []
    if isinstance(value, list) and all(isinstance(layer, int) and not isinstance(layer, bool) for layer in value):
        return tuple(value)
    raise wrong_type(name, value, "a list of layer numbers")


def wrong_type(name: str, value: object, wanted: str) -> UnsupportedModelError:
    """The error for a field of another type; ``wanted`` is what belongs there."""
    return UnsupportedModelError(
        f"config.json: {name} is {shown(value)}, where {wanted} belongs; take the config.json of the original "
        "checkpoint"
    )


def _stated(document: Mapping[str, Any], name: str, default: float | None) -> Any:
    value = document.get(name)
    if value is None and default is None:
        raise UnsupportedModelError(f"config.json: {name} is missing; take the config.json of the original checkpoint")
    return default if value is None else value
