"""The byte layouts of GGML's block formats as a table, and the functions that write and read blocks by it.

Source: the block structs in llama.cpp's ``ggml/src/ggml-common.h``; gguf-py's ``quants.py`` reads the same.

A block is a sequence of fields. A field takes some bits of one list of unsigned integers: the codes, or the
sub-scales followed by the sub-offsets (``subs``), each with a bias added so that it is not negative. Codes wider than
a field's bits are split over two fields (the low four bits here, the fifth there).

Shapes: # N blocks  E elements a block  G groups a block  Y bytes a block
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import read_only
from qwen3_export.quantizers.ggml.planes import pack_planes, unpack_planes

__all__ = ["LAYOUTS", "BlockFields", "Field", "pack_blocks", "unpack_blocks"]

Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """``scale`` and ``offset`` are one float16 each; ``six_bit_pairs`` is Q4_K's 12 bytes; others are bit planes."""

    holds: Literal["scale", "offset", "codes", "subs", "six_bit_pairs"]
    size: int
    width: int = 0
    stride: int = 0
    shift: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockFields:
    """The contents of N blocks: unsigned codes, unsigned sub-scales and sub-offsets side by side, float16 scales."""

    codes_NE: Bytes
    scale_N: NDArray[np.float16]
    offset_N: NDArray[np.float16] | None = None
    subs_NG: Bytes | None = None


def _codes(size: int, *, width: int, stride: int, shift: int = 0) -> Field:
    return Field(holds="codes", size=size, width=width, stride=stride, shift=shift)


def _subs(size: int, *, width: int, stride: int, shift: int = 0) -> Field:
    return Field(holds="subs", size=size, width=width, stride=stride, shift=shift)


_SCALE = Field(holds="scale", size=2)
_OFFSET = Field(holds="offset", size=2)
_SIX_BIT_PAIRS = Field(holds="six_bit_pairs", size=12)

LAYOUTS: Mapping[str, tuple[Field, ...]] = MappingProxyType(
    {
        "Q8_0": (_SCALE, _codes(32, width=8, stride=32)),
        "Q4_0": (_SCALE, _codes(16, width=4, stride=16)),
        "Q4_1": (_SCALE, _OFFSET, _codes(16, width=4, stride=16)),
        "Q5_0": (_SCALE, _codes(4, width=1, stride=1, shift=4), _codes(16, width=4, stride=16)),
        "Q5_1": (_SCALE, _OFFSET, _codes(4, width=1, stride=1, shift=4), _codes(16, width=4, stride=16)),
        "Q2_K": (_subs(16, width=4, stride=16), _codes(64, width=2, stride=32), _SCALE, _OFFSET),
        "Q3_K": (
            _codes(32, width=1, stride=32, shift=2),
            _codes(64, width=2, stride=32),
            _subs(8, width=4, stride=8),
            _subs(4, width=2, stride=4, shift=4),
            _SCALE,
        ),
        "Q4_K": (_SCALE, _OFFSET, _SIX_BIT_PAIRS, _codes(128, width=4, stride=32)),
        "Q5_K": (
            _SCALE,
            _OFFSET,
            _SIX_BIT_PAIRS,
            _codes(32, width=1, stride=32, shift=4),
            _codes(128, width=4, stride=32),
        ),
        "Q6_K": (
            _codes(128, width=4, stride=64),
            _codes(64, width=2, stride=32, shift=4),
            _subs(16, width=8, stride=16),
            _SCALE,
        ),
        "IQ4_NL": (_SCALE, _codes(16, width=4, stride=16)),
        "IQ4_XS": (
            _SCALE,
            _subs(2, width=2, stride=1, shift=4),
            _subs(4, width=4, stride=1),
            _codes(128, width=4, stride=16),
        ),
    }
)


def pack_blocks(layout: tuple[Field, ...], fields: BlockFields) -> Bytes:
    """Write blocks [N, Y] that hold these fields."""
    out_NY = np.empty((fields.codes_NE.shape[0], sum(field.size for field in layout)), np.uint8)
    first = 0
    for field in layout:
        where = slice(first, first + field.size)
        if field.holds == "scale":
            out_NY[:, where] = fields.scale_N[:, None].view(np.uint8)
        elif field.holds == "offset":
            assert fields.offset_N is not None
            out_NY[:, where] = fields.offset_N[:, None].view(np.uint8)
        elif field.holds == "six_bit_pairs":
            assert fields.subs_NG is not None
            out_NY[:, where] = _pack_six_bit_pairs(fields.subs_NG)
        else:
            source = fields.codes_NE if field.holds == "codes" else fields.subs_NG
            assert source is not None
            pack_planes(out_NY, read_only(source), first, field.width, field.shift, field.stride)
        first += field.size
    return out_NY


def unpack_blocks(layout: tuple[Field, ...], blocks_NY: Bytes, *, elements: int, subs: int) -> BlockFields:
    """Read the fields of blocks [N, Y]: the inverse of ``pack_blocks``. ``subs`` counts sub-scales and sub-offsets."""
    count = blocks_NY.shape[0]
    codes_NE = np.zeros((count, elements), np.uint8)
    subs_NG = np.zeros((count, subs), np.uint8)
    halves: dict[str, NDArray[np.float16]] = {}
    first = 0
    for field in layout:
        bytes_NY = blocks_NY[:, first : first + field.size]
        if field.holds in ("scale", "offset"):
            halves[field.holds] = np.ascontiguousarray(bytes_NY).view(np.float16)[:, 0]
        elif field.holds == "six_bit_pairs":
            subs_NG = _unpack_six_bit_pairs(bytes_NY)
        else:
            target = codes_NE if field.holds == "codes" else subs_NG
            unpack_planes(target, read_only(blocks_NY), first, field.width, field.shift, field.stride)
        first += field.size
    return BlockFields(
        codes_NE=codes_NE, scale_N=halves["scale"], offset_N=halves.get("offset"), subs_NG=subs_NG if subs else None
    )


def _pack_six_bit_pairs(subs_NG: Bytes) -> Bytes:
    """Put eight 6-bit scales and eight 6-bit offsets into 12 bytes.

    Groups 0-3 lie whole in the low six bits of bytes 0-3 (scales) and 4-7 (offsets); groups 4-7 put their low four
    bits into bytes 8-11 (scale low, offset high) and their upper two on top of bytes 0-3 and 4-7.
    """
    scales, offsets = subs_NG[:, :8], subs_NG[:, 8:]
    return np.concatenate(
        [
            scales[:, :4] | (scales[:, 4:] >> 4 << 6),
            offsets[:, :4] | (offsets[:, 4:] >> 4 << 6),
            (scales[:, 4:] & 15) | (offsets[:, 4:] << 4),
        ],
        axis=1,
    )


def _unpack_six_bit_pairs(bytes_NY: Bytes) -> Bytes:
    scales, offsets, rest = bytes_NY[:, :4], bytes_NY[:, 4:8], bytes_NY[:, 8:]
    return np.concatenate(
        [scales & 63, (rest & 15) | (scales >> 6 << 4), offsets & 63, (rest >> 4) | (offsets >> 6 << 4)], axis=1
    )
