"""Rows of a quantized embedding by standard operators, for runtimes that lack GatherBlockQuantized.

    codes   [vocabulary, groups, bytes] ─ Gather ─ two codes a byte apart ─ − zero point ─ × scale ─ rows
    scales  [vocabulary, groups] ──────── Gather ──────────────────────────────────────────┘

The head multiplies with the same initializers, so a tied embedding is stored once. The default device of
transformers.js 4 in a browser (wasm) has every operator used here, and none of GatherBlockQuantized. The rows are the
same to the last bit: codes are small whole numbers, so that the product is rounded once in either float type.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.targets.onnx.builder import GraphBuilder
from qwen3_export.targets.onnx.layout import CODES, SCALES, ZERO_POINTS, Initializer

__all__ = ["gather_rows"]

BITS_A_BYTE = 8


def gather_rows(
    build: GraphBuilder,
    places: Mapping[str, Initializer],
    number_format: AffineFormat,
    ids: ir.Value,
    *,
    name: str,
    output: str,
    dtype: ir.DataType,
) -> ir.Value:
    """Dequantized rows of the embedding, [batch, sequence, hidden]; intermediate values are named after ``name``."""
    _, groups, size = places[CODES].shape
    bits, block = number_format.num_bits, number_format.group_size
    assert block is not None
    assert size * BITS_A_BYTE == block * bits
    codes = build.op("Gather", build.stored(places[CODES]), ids, name=f"{name}.codes")
    codes = _whole_codes(build, codes, bits, shape=(0, 0, groups, block), name=f"{name}.codes")
    numbers = build.op("Cast", codes, name=f"{name}.numbers", dtype=dtype, to=int(dtype))
    zero = _zero(build, places, number_format, ids, groups=groups, name=f"{name}.zero_points")
    zero = build.op("Cast", zero, name=f"{name}.zeros", dtype=dtype, to=int(dtype))
    scales = build.op("Gather", build.stored(places[SCALES]), ids, name=f"{name}.scales", dtype=dtype)
    scales = build.op("Unsqueeze", scales, build.integers(-1), name=f"{name}.scales_of_groups", dtype=dtype)
    centred = build.op("Sub", numbers, zero, name=f"{name}.centred", dtype=dtype)
    scaled = build.op("Mul", centred, scales, name=f"{name}.scaled", dtype=dtype)
    return build.op("Reshape", scaled, build.integers(0, 0, groups * block), name=output, dtype=dtype)


def _zero(
    build: GraphBuilder,
    places: Mapping[str, Initializer],
    number_format: AffineFormat,
    ids: ir.Value,
    *,
    groups: int,
    name: str,
) -> ir.Value:
    """The code that stands for zero, of each group [batch, sequence, groups, 1], or the one of all."""
    bits = number_format.num_bits
    if ZERO_POINTS not in places:
        return build.byte(1 << (bits - 1))
    packed = build.op("Gather", build.stored(places[ZERO_POINTS]), ids, name=name)
    codes_a_byte = BITS_A_BYTE // bits
    whole = _whole_codes(build, packed, bits, shape=(0, 0, places[ZERO_POINTS].shape[1] * codes_a_byte), name=name)
    if places[ZERO_POINTS].shape[1] * codes_a_byte != groups:  # the last byte of a row is half empty
        whole = build.op(
            "Slice", whole, build.integers(0), build.integers(groups), build.integers(2), name=f"{name}.of_groups"
        )
    return build.op("Unsqueeze", whole, build.integers(-1), name=f"{name}.of_each_group")


def _whole_codes(build: GraphBuilder, packed: ir.Value, bits: int, *, shape: tuple[int, ...], name: str) -> ir.Value:
    """Packed bytes as one code each, low half first, in the shape given."""
    if bits == BITS_A_BYTE:
        return packed
    low = build.op("BitwiseAnd", packed, build.byte((1 << bits) - 1), name=f"{name}.low")
    high = build.op("BitShift", packed, build.byte(bits), name=f"{name}.high", direction="RIGHT")
    halves = [
        build.op("Unsqueeze", half, build.integers(-1), name=f"{name}.{which}_half")
        for which, half in (("low", low), ("high", high))
    ]
    pairs = build.op("Concat", *halves, name=f"{name}.pairs", axis=-1)
    return build.op("Reshape", pairs, build.integers(*shape), name=f"{name}.apart")
