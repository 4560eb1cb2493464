"""Parameters of the parts of a weight, put together: parts are blocks of rows, or blocks of columns.

Parameters are frozen dataclasses of arrays (None where a format lacks one), one class a format.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["join_columns", "join_rows"]

Params = TypeVar("Params", bound="DataclassInstance")


def join_rows(parts: Sequence[Params]) -> Params:
    """The parameters of blocks of rows that lie one below the other."""
    return _join(parts, axis=0)


def join_columns(parts: Sequence[Params]) -> Params:
    """The parameters of blocks of columns that lie side by side."""
    return _join(parts, axis=1)


def _join(parts: Sequence[Params], *, axis: int) -> Params:
    if len(parts) == 1:
        return parts[0]
    arrays = {field.name: [getattr(part, field.name) for part in parts] for field in fields(parts[0])}
    joined = {name: None if found[0] is None else np.concatenate(found, axis=axis) for name, found in arrays.items()}
    return replace(parts[0], **joined)
