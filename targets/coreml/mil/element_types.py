"""MIL's element types: their numbers in the program and in weight.bin, and their numpy and torch types.

Sources: the enumeration ``DataType`` in coremltools' ``MIL.proto``; for weight.bin, the codes that coremltools'
``libmilstoragepython`` writes. In torch every float is fp32, whatever its declared type; ``arithmetic.py`` decides
which results are rounded. Unsigned integers of 16 and 32 bits use torch's next larger signed type, because torch has
few operations for them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.errors import UnsupportedModelError

__all__ = ["ElementType", "by_name", "by_number", "to_torch"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """One element type; ``torch_type`` is None for strings, ``blob_code`` is None if weight.bin cannot hold it."""

    name: str
    number: int
    bits: int
    numpy_type: np.dtype
    torch_type: torch.dtype | None
    blob_code: int | None = None

    @property
    def is_float(self) -> bool:
        return self.numpy_type.kind == "f"

    @property
    def is_signed(self) -> bool:
        return self.numpy_type.kind == "i"

    def byte_count(self, elements: int) -> int:
        """Bytes that this many elements take in weight.bin, where they lie without gaps."""
        return -(-elements * self.bits // 8)


def by_number(number: int) -> ElementType:
    """The type with this number in ``MIL.proto``. Raises UnsupportedModelError for an unknown one."""
    try:
        return BY_NUMBER[number]
    except KeyError:
        raise UnsupportedModelError(
            f"the program has values of MIL's data type {number}, which this executor does not know"
        ) from None


def by_name(name: str) -> ElementType:
    """The type with this name (fp16, int32, bool, …), as ``cast`` and others spell it."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise UnsupportedModelError(
            f"the program names a data type {name}, which this executor does not know"
        ) from None


def to_torch(array: NDArray[np.generic]) -> Tensor:
    """Convert an array to torch: floats become fp32, unsigned integers a type that torch supports."""
    held = HELD.get(array.dtype.name, array.dtype)
    return torch.from_numpy(np.array(array, held, order="C"))


def _type(name: str, number: int, bits: int, numpy_type: str, torch_type: torch.dtype, code: int | None) -> ElementType:
    return ElementType(
        name=name, number=number, bits=bits, numpy_type=np.dtype(numpy_type), torch_type=torch_type, blob_code=code
    )


TYPES = (
    _type("bool", 1, 8, "?", torch.bool, None),
    ElementType(name="string", number=2, bits=0, numpy_type=np.dtype("U"), torch_type=None),
    _type("fp16", 10, 16, "<f2", torch.float32, 1),
    _type("fp32", 11, 32, "<f4", torch.float32, 2),
    _type("fp64", 12, 64, "<f8", torch.float32, None),
    _type("int8", 21, 8, "i1", torch.int8, 4),
    _type("int16", 22, 16, "<i2", torch.int16, 6),
    _type("int32", 23, 32, "<i4", torch.int32, 14),
    _type("int64", 24, 64, "<i8", torch.int64, None),
    _type("int4", 25, 4, "i1", torch.int8, 8),
    _type("uint8", 31, 8, "u1", torch.uint8, 3),
    _type("uint16", 32, 16, "<u2", torch.int32, 7),
    _type("uint32", 33, 32, "<u4", torch.int64, 15),
    _type("uint4", 35, 4, "u1", torch.uint8, 11),
    _type("uint2", 36, 2, "u1", torch.uint8, 10),
    _type("uint1", 37, 1, "u1", torch.uint8, 9),
    _type("uint6", 38, 6, "u1", torch.uint8, 13),
    _type("uint3", 39, 3, "u1", torch.uint8, 12),
)
HELD = {"float16": "f4", "float64": "f4", "uint16": "i4", "uint32": "i8", "uint64": "i8"}
BY_NUMBER = {element.number: element for element in TYPES}
BY_NAME = {element.name: element for element in TYPES}
