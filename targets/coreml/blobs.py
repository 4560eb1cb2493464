"""Read and write weight.bin, Core ML's file of constants.

The file begins with a header of 64 bytes (number of blobs, version 2). Each blob has a record of 64 bytes (sentinel,
element type, bytes of data, offset of the data, unused bits in the last byte) and its data; both begin at multiples of
64. A program refers to a blob by the offset of its record. Elements of fewer than 8 bits form one bit stream over the
whole array, with the first element in the lowest bits.

Source: coremltools' mlmodel/src/MILBlob/Blob/StorageFormat.hpp and BlobDataType.hpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType

import numpy as np

from qwen3_export.errors import CheckpointError
from qwen3_export.files.positional import read_exactly
from qwen3_export.quantizers.packing.bits import unpack_bits

__all__ = ["ELEMENTS", "RECORD_BYTES", "Blob", "Element", "aligned", "header_bytes", "read_record", "read_values"]

RECORD_BYTES = ALIGNMENT = 64
SENTINEL, VERSION = 0xDEADBEEF, 2
HEADER, RECORD = struct.Struct("<II56x"), struct.Struct("<IIQQQ32x")


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """An element type: its code in a record, its size in bits, and the numpy type that holds one element."""

    code: int
    num_bits: int
    dtype: str
    is_signed: bool = False


ELEMENTS: Mapping[str, Element] = MappingProxyType(
    {
        "fp16": Element(code=1, num_bits=16, dtype="<f2"),
        "fp32": Element(code=2, num_bits=32, dtype="<f4"),
        "uint8": Element(code=3, num_bits=8, dtype="|u1"),
        "int8": Element(code=4, num_bits=8, dtype="|i1", is_signed=True),
        "int4": Element(code=8, num_bits=4, dtype="|u1", is_signed=True),
        "uint2": Element(code=10, num_bits=2, dtype="|u1"),
        "uint4": Element(code=11, num_bits=4, dtype="|u1"),
        "uint3": Element(code=12, num_bits=3, dtype="|u1"),
        "uint6": Element(code=13, num_bits=6, dtype="|u1"),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """One array in the file; ``offset`` is where its record begins, ``data_offset`` where its first element begins."""

    name: str
    element: str
    shape: tuple[int, ...]
    offset: int
    data_offset: int

    @property
    def num_bits(self) -> int:
        return ELEMENTS[self.element].num_bits

    @property
    def num_bytes(self) -> int:
        """Size of the data, without the record."""
        return -(-prod(self.shape) * self.num_bits // 8)

    @property
    def end(self) -> int:
        return self.data_offset + self.num_bytes

    def byte_of(self, index: int) -> int:
        """The byte of the file at which the element with this flat index begins (the element must begin a byte)."""
        return self.data_offset + index * self.num_bits // 8

    def record(self) -> bytes:
        """The bytes of the record in front of the data."""
        unused = 8 * self.num_bytes - prod(self.shape) * self.num_bits
        return RECORD.pack(SENTINEL, ELEMENTS[self.element].code, self.num_bytes, self.data_offset, unused)


def aligned(offset: int) -> int:
    """The next offset at which a record or data may begin."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def header_bytes(count: int) -> bytes:
    """The first bytes of a file with ``count`` blobs."""
    return HEADER.pack(count, VERSION)


def read_record(path: Path, offset: int, *, name: str, element: str, shape: tuple[int, ...]) -> Blob:
    """Read the record at an offset. Raises CheckpointError unless it describes an array of this type and shape."""
    data = read_exactly(path, offset, RECORD_BYTES, part=f"the record of {name}")
    sentinel, code, num_bytes, data_offset, _ = RECORD.unpack(bytes(data))
    blob = Blob(name=name, element=element, shape=shape, offset=offset, data_offset=data_offset)
    if sentinel != SENTINEL:
        raise CheckpointError(f"{path}: no array begins at byte {offset}, where {name} should be; the file is damaged")
    if code != ELEMENTS[element].code or num_bytes != blob.num_bytes:
        raise CheckpointError(f"{path}: {name} is not the {element} array of shape {list(shape)} that the program says")
    return blob


def read_values(path: Path, blob: Blob, *, first: int = 0, count: int | None = None) -> np.ndarray:
    """Read ``count`` elements from flat index ``first`` on, as floats, int8 or uint8."""
    element = ELEMENTS[blob.element]
    count = prod(blob.shape) - first if count is None else count
    if element.num_bits >= 8:
        size = element.num_bits // 8
        data = read_exactly(path, blob.byte_of(first), count * size, part=blob.name)
        return np.frombuffer(data, element.dtype)
    start = first // 8 * 8  # eight elements of any size fill whole bytes
    num_bytes = -(-(first + count - start) * element.num_bits // 8)
    data = read_exactly(path, blob.byte_of(start), num_bytes, part=blob.name)
    padded = np.pad(np.frombuffer(data, np.uint8), (0, -num_bytes % element.num_bits))
    integers = unpack_bits(padded, element.num_bits)[first - start :][:count]
    if not element.is_signed:
        return integers
    unused = np.uint8(8 - element.num_bits)
    return (integers << unused).view(np.int8) >> unused.view(np.int8)
