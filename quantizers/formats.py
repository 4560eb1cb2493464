"""What a number format is: the values that a weight can be stored as, and the way to the nearest ones.

A number format stores rows of weights as codes, one for each weight, and parameters (scales, offsets, tables) that
some weights share. There are plain floats (``floats.py``), GGML's blocks (``ggml``), affine integers (``affine``) and
lookup tables (``palette``). All of them are used in the same way:

    codes, params = number_format.encode(values, importance)    # fp32 [R, I] to codes [R, I] and parameters
    stored = number_format.dequantize(codes, params)            # the fp32 values that a runtime computes from them

``encode`` is two steps, which solvers take one at a time: ``fit`` chooses parameters for some weights, ``round`` the
nearest codes under given parameters. Both work on any block of rows that shares its parameters with no other row.

How codes and parameters lie in an artifact is the business of its target, except for floats and GGML's blocks: these
formats define the bytes of a row themselves (``PackedFormat``).

Shapes: # R rows  I columns  J columns of one slab  G groups a row  Y bytes a row
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError

__all__ = [
    "ArrayType",
    "Arrays",
    "Bytes",
    "Codebook",
    "Codes",
    "NumberFormat",
    "PackedFormat",
    "Values",
    "Weighting",
    "as_packed",
]

Values = NDArray[np.float32]
Codes = NDArray[Any]  # int8; palettes have uint8, floats the numbers that are stored
Bytes = NDArray[np.uint8]
Arrays = Mapping[str, NDArray[Any]]
Weighting = Literal["usual", "importance"]


class Codebook(NamedTuple):
    """The levels that codes stand for: the codes themselves, from ``low`` to ``high``, or an ascending list."""

    low: np.float32
    high: np.float32
    levels_L: Values  # empty where codes are their own levels


class ArrayType(NamedTuple):
    """Element type (numpy's name for it, little-endian) and shape of an array."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * np.dtype(self.dtype).itemsize


class NumberFormat(Protocol):
    """One number format. Parameters are the format's own class, which is why they are ``Any`` here."""

    @property
    def name(self) -> str:
        """Such as ``Q4_K``, ``F16``, ``int4_g32`` or ``palette4_rows8``: different for different formats."""
        ...

    @property
    def is_float(self) -> bool:
        """Whether weights are kept as plain floats, so that there is nothing to choose or to solve."""
        ...

    @property
    def rows_together(self) -> int | None:
        """How many neighbouring rows share parameters: 1, or the rows of one table; None for all rows."""
        ...

    @property
    def columns_together(self) -> int | None:
        """How many neighbouring columns of a row share parameters: the columns of a block; None for whole rows."""
        ...

    @property
    def codebook(self) -> Codebook | None:
        """The levels, where a value is ``scale_RG * level - offset_RG`` of the parameters; None in other formats."""
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise QuantizationError where a weight of this shape cannot be stored."""
        ...

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Stored bits a weight, parameters included, for a weight of this shape."""
        ...

    def fit(self, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "usual") -> Any:
        """Parameters that minimize the squared error of the stored values, each column's times its importance.

        ``importance`` is [I], or [R, I] where rows differ: mean squared activations, never negative. A solver whose
        importances are final says ``weighting="importance"``; "usual" lets a format add what it was measured to gain
        from. Raises QuantizationError for weights that the format cannot hold.
        """
        ...

    def round(self, values_RI: Values, params: Any) -> Codes:
        """The nearest code of each weight under given parameters, [R, I]."""
        ...

    def encode(self, values_RI: Values, importance: Values | None = None) -> tuple[Codes, Any]:
        """Codes [R, I] and parameters of rows of weights: ``fit``, then ``round``."""
        ...

    def dequantize(self, codes_RI: Codes, params: Any) -> Values:
        """The values that codes stand for, [R, I]: the way back from ``encode``, to the last bit of a runtime's."""
        ...

    def refit(self, codes_RJ: Codes, params: Any, *, gradient_RJ: Values, metric_JJ: Values) -> tuple[Any, Values]:
        """Better parameters for given codes under a whole Hessian, and the gradient with them; no error rises.

        ``metric_JJ`` is the Hessian, ``gradient_RJ`` half the error's derivative by each value. Formats whose
        parameters stay as they were fitted return both arguments unchanged.
        """
        ...

    def changes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of relative changes of a weight's parameters, rows (or tables) first; None where there are none."""
        ...

    def changed(self, params: Any, changes: Values) -> Any:
        """Parameters changed by small relative numbers, as they can be stored; ``changes`` of 0 change nothing.

        A scale s becomes s (1 + change); the entry of a table is moved by change times the table's largest magnitude.
        """
        ...

    def by_changes(self, codes_RI: Codes, params: Any, gradient_RI: Values) -> Values:
        """The derivative by each of these changes, from the gradient by the stored values."""
        ...

    def to_arrays(self, codes_RI: Codes, params: Any) -> dict[str, NDArray[Any]]:
        """Codes and parameters as named arrays, to be kept in a file: those that ``array_types`` tells beforehand.

        The first dimension of each is the rows, or the groups of rows that share parameters, so that some rows of a
        weight are slices of its arrays.
        """
        ...

    def from_arrays(self, arrays: Arrays) -> tuple[Codes, Any]:
        """Codes and parameters: the inverse of ``to_arrays``."""
        ...

    def array_types(self, shape: tuple[int, ...]) -> dict[str, ArrayType]:
        """The arrays that ``to_arrays`` makes of a weight of this shape, in the same order."""
        ...


@runtime_checkable
class PackedFormat(NumberFormat, Protocol):
    """A format that defines the bytes of a row: plain floats, and GGML's blocks."""

    @property
    def block_size(self) -> int:
        """Weights that are stored together: a row must be a multiple of them. 1 for floats."""
        ...

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of this many weights; QuantizationError where blocks do not divide it."""
        ...

    def pack(self, codes_RI: Codes, params: Any) -> Bytes:
        """The bytes of rows, [R, Y]."""
        ...

    def unpack(self, bytes_RY: Bytes) -> tuple[Codes, Any]:
        """Codes and parameters: the inverse of ``pack``."""
        ...


def as_packed(number_format: NumberFormat) -> PackedFormat:
    """The same format, known to define the bytes of a row; QuantizationError where it does not."""
    if not isinstance(number_format, PackedFormat):
        raise QuantizationError(f"{number_format.name} does not define the bytes of a row; use a float or GGML format")
    return number_format
