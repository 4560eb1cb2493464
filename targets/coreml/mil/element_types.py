"""MIL's element types: their numbers in the program and in weight.bin, and what holds them in numpy and torch.

Sources: the enumeration ``DataType`` of coremltools' ``MIL.proto``; the codes of weight.bin as coremltools'
``libmilstoragepython`` writes them. In torch every float is fp32, whatever its declared type: which results are
rounded is decided elsewhere (``arithmetic.py``). Unsigned integers of 16 and 32 bits take torch's next larger signed
type, because torch has few operations for them.
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
    """One element type; ``torch_type`` is None for strings, ``blob_code`` None for what weight.bin cannot hold."""

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
        """The bytes that so many elements take in weight.bin, where they lie without gaps."""
        return -(-elements * self.bits // 8)


def by_number(number: int) -> ElementType:
    """The type with a number of ``MIL.proto``; UnsupportedModelError for one that is not executed."""
    try:
        return BY_NUMBER[number]
    except KeyError:
        raise UnsupportedModelError(
            f"the program has values of MIL's data type {number}, which this executor does not know"
        ) from None


def by_name(name: str) -> ElementType:
    """The type by the name that ``cast`` and others give it: fp16, int32, bool, and so on."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise UnsupportedModelError(
            f"the program names a data type {name}, which this executor does not know"
        ) from None


def to_torch(array: NDArray[np.generic]) -> Tensor:
    """An array as the executor holds it: floats in fp32, unsigned integers where torch has room for them."""
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
