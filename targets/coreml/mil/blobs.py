"""Read weight.bin, the file beside the program that holds its large constants.

It begins with a header of 64 bytes (number of blobs, format version 2). Each blob is a record of 64 bytes (sentinel,
element type, size in bytes, offset of the data, bits of padding in the last byte), followed by its data at a multiple
of 64. The program refers to a blob by the offset of its record. Source: the files that coremltools'
``libmilstoragepython`` writes. The code that writes our own packages (``coreml/blobs.py``) shares nothing with this
reader, so a mistake in one is not repeated in the other.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError
from qwen3_export.files.positional import read_exactly
from qwen3_export.quantizers.packing.bits import unpack_bits
from qwen3_export.targets.coreml.mil.element_types import ElementType

__all__ = ["Blob", "check_blob", "read_blob", "unpack_elements"]

HEADER, RECORD = struct.Struct("<II"), struct.Struct("<IIQQ")
VERSION, SENTINEL = 2, 0xDEADBEEF
CHUNK_BYTES = 3 << 18  # a multiple of 3, so that whole elements of 3 and 6 bits fill it


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A constant in a weight file: the place of its record, and the type and shape that the program declares."""

    path: Path
    offset: int
    element: ElementType
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.element.byte_count(self.elements)


def check_blob(blob: Blob) -> None:
    """Check a blob's record without reading its data.

    Raises CheckpointError if the file, the record or the data is missing, cut off or of another type.
    """
    end = _data_offset(blob) + blob.bytes
    size = blob.path.stat().st_size  # the record was read from it
    if end > size:
        raise CheckpointError(f"{blob.path}: is cut off: {size} bytes of at least {end}; copy the whole package again")


def read_blob(blob: Blob) -> NDArray[np.generic]:
    """Read a blob as a numpy array in its shape. Elements of fewer than 8 bits take one byte each."""
    stored = read_exactly(blob.path, _data_offset(blob), blob.bytes, part="a constant of the program")
    return unpack_elements(np.frombuffer(stored, np.uint8), blob.element, blob.elements).reshape(blob.shape)


def unpack_elements(stored_Y: NDArray[np.uint8], element: ElementType, count: int) -> NDArray[np.generic]:
    """Decode ``count`` elements from stored bytes, [Y]. Integers of fewer than 8 bits lie in one bit stream."""
    if element.bits >= 8:
        return stored_Y.view(element.numpy_type)
    unsigned = np.empty(stored_Y.size * 8 // element.bits + 8, np.uint8)
    filled = 0
    for start in range(0, stored_Y.size, CHUNK_BYTES):
        part = stored_Y[start : start + CHUNK_BYTES]
        found = _nibbles(part) if element.bits == 4 else unpack_bits(_padded(part, element.bits), element.bits)
        kept = min(found.size, unsigned.size - filled)
        unsigned[filled : filled + kept] = found[:kept]
        filled += kept
    if not element.is_signed:
        return unsigned[:count]
    half = np.uint8(1 << (element.bits - 1))
    return ((unsigned[:count] ^ half) - half).view(np.int8)


def _nibbles(bytes_Y: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Like ``unpack_bits`` for 4 bits, but faster: it does not go through single bits."""
    unsigned = np.empty(2 * bytes_Y.size, np.uint8)
    np.bitwise_and(bytes_Y, 15, out=unsigned[0::2])
    np.right_shift(bytes_Y, 4, out=unsigned[1::2])
    return unsigned


def _padded(bytes_Y: NDArray[np.uint8], num_bits: int) -> NDArray[np.uint8]:
    return np.pad(bytes_Y, (0, -bytes_Y.size % num_bits))


def _data_offset(blob: Blob) -> int:
    """Check the header and the record against the program, and return the offset of the data."""
    _, version = HEADER.unpack(read_exactly(blob.path, 0, HEADER.size, part="the header of the weights"))
    if version != VERSION:
        raise CheckpointError(f"{blob.path}: is not a weight file of Core ML in its format version {VERSION}")
    record = read_exactly(blob.path, blob.offset, RECORD.size, part="the record of a constant")
    sentinel, code, stored, offset = RECORD.unpack(record)
    if sentinel != SENTINEL or code != blob.element.blob_code or stored != blob.bytes:
        raise CheckpointError(
            f"{blob.path}: at {blob.offset} there are not the {blob.bytes} bytes of {blob.element.name} that the "
            f"program speaks of; program and weights are not of one export"
        )
    return int(offset)
