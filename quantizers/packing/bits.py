"""Pack integers of 1 to 8 bits one after the other without gaps: the layout that most packings build on.

Integer n of a row begins at bit ``n * num_bits`` of the row's bit stream. Bit k of the stream is bit k % 8 (the lowest
first) of byte k // 8. As little-endian 32-bit words it is the same stream, so words are views of bytes. An integer of
3, 5 or 6 bits may lie in two bytes or words.

Shapes: # X rows  N integers a row  Y bytes a row  W words a row
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError

__all__ = ["from_unsigned", "pack_bits", "pack_words", "to_unsigned", "unpack_bits", "unpack_words"]

Bytes = NDArray[np.uint8]


def pack_bits(integers_XN: Bytes, num_bits: int) -> Bytes:
    """Pack unsigned integers below ``2 ** num_bits`` to [X, Y]; QuantizationError unless they fill whole bytes."""
    count = integers_XN.shape[-1]
    if count * num_bits % 8:
        raise QuantizationError(f"{count} integers of {num_bits} bits do not fill whole bytes; use a multiple of 8")
    if num_bits == 8:
        return np.ascontiguousarray(integers_XN)
    if num_bits in (1, 2, 4):
        per_byte = 8 // num_bits
        packed = integers_XN[..., 0::per_byte].copy()
        for k in range(1, per_byte):
            packed |= integers_XN[..., k::per_byte] << np.uint8(k * num_bits)
        return packed
    bits = np.unpackbits(integers_XN[..., None], axis=-1, bitorder="little")[..., :num_bits]
    return np.packbits(bits.reshape(*integers_XN.shape[:-1], -1), axis=-1, bitorder="little")


def unpack_bits(bytes_XY: Bytes, num_bits: int) -> Bytes:
    """The unsigned integers of a bit stream, [X, N]: the inverse of ``pack_bits``."""
    if bytes_XY.shape[-1] * 8 % num_bits:
        raise QuantizationError(f"{bytes_XY.shape[-1]} bytes are not made of integers of {num_bits} bits")
    bits = np.unpackbits(np.ascontiguousarray(bytes_XY), axis=-1, bitorder="little")
    bits = bits.reshape(*bytes_XY.shape[:-1], -1, num_bits)
    return np.packbits(bits, axis=-1, bitorder="little")[..., 0]


def pack_words(integers_XN: Bytes, num_bits: int) -> NDArray[np.int32]:
    """Pack unsigned integers to 32-bit words, [X, W]; QuantizationError unless they fill whole words."""
    count = integers_XN.shape[-1]
    if count * num_bits % 32:
        raise QuantizationError(
            f"{count} integers of {num_bits} bits do not fill whole 32-bit words; use a multiple of 32"
        )
    return np.ascontiguousarray(pack_bits(integers_XN, num_bits)).view("<i4")


def unpack_words(words_XW: NDArray[np.int32], num_bits: int) -> Bytes:
    """The unsigned integers of 32-bit words, [X, N]: the inverse of ``pack_words``."""
    return unpack_bits(np.ascontiguousarray(words_XW, "<i4").view(np.uint8), num_bits)


def to_unsigned(codes: NDArray[np.int8], num_bits: int) -> Bytes:
    """Signed codes as integers from 0: half the range is added."""
    return (codes.astype(np.int16) + (1 << (num_bits - 1))).astype(np.uint8)


def from_unsigned(integers: Bytes, num_bits: int) -> NDArray[np.int8]:
    """The inverse of ``to_unsigned``."""
    return (integers.astype(np.int16) - (1 << (num_bits - 1))).astype(np.int8)
