"""The GGUF container, version 3: turns metadata and the tensor table into bytes, with all offsets known in advance.

Layout (ggml's docs/gguf.md): magic, version, number of tensors, number of metadata pairs, the pairs, the tensor table,
padding, then the tensors, each padded to the alignment of 32 bytes. Everything is little-endian. Strings are a 64-bit
length and UTF-8. A tensor's dimensions are listed innermost first, and its offset counts from the start of the data.
The header depends only on sizes, so it is written before the first weight is read.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

__all__ = ["ALIGNMENT", "MetaType", "MetaValue", "Metadata", "TensorInfo", "aligned", "lay_out", "serialize_header"]

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32


class MetaType(IntEnum):
    """Types of metadata values that this writer uses (ggml's gguf_type)."""

    UINT16 = 2
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9


STRUCT_CODES = {
    MetaType.UINT16: "<H",
    MetaType.UINT32: "<I",
    MetaType.INT32: "<i",
    MetaType.FLOAT32: "<f",
    MetaType.BOOL: "<?",
}


@dataclass(frozen=True, slots=True)
class MetaValue:
    """One metadata value. With ``is_array``, ``value`` is a sequence of items of type ``type``."""

    type: MetaType
    value: Any
    is_array: bool = False


Metadata = Mapping[str, MetaValue]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One row of the tensor table; ``shape`` is outermost first, ``offset`` counts bytes from the start of the data."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    num_bytes: int


def aligned(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def lay_out(tensors: Iterable[tuple[str, tuple[int, ...], int, int]]) -> list[TensorInfo]:
    """Place tensors, given as (name, shape, type_id, num_bytes), one after another."""
    placed, offset = [], 0
    for name, shape, type_id, num_bytes in tensors:
        placed.append(TensorInfo(name=name, shape=shape, type_id=type_id, offset=offset, num_bytes=num_bytes))
        offset += aligned(num_bytes)
    return placed


def serialize_header(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    """Everything before the data, padded to the alignment; the data starts right after it."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _meta_value(value)]
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type_id, tensor.offset),
        ]
    header = b"".join(parts)
    return header + bytes(aligned(len(header)) - len(header))


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _meta_value(value: MetaValue) -> bytes:
    if value.is_array:
        head = struct.pack("<IIQ", MetaType.ARRAY, value.type, len(value.value))
        return head + _array_items(value.type, value.value)
    return struct.pack("<I", value.type) + _scalar(value.type, value.value)


def _scalar(type_: MetaType, value: Any) -> bytes:
    return _string(value) if type_ is MetaType.STRING else struct.pack(STRUCT_CODES[type_], value)


def _array_items(type_: MetaType, items: Sequence[Any]) -> bytes:
    if type_ is MetaType.STRING:
        return b"".join(map(_string, items))
    code = STRUCT_CODES[type_]
    return struct.pack(f"{code[0]}{len(items)}{code[1]}", *items)
