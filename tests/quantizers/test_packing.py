"""Storage forms: lossless both ways, equal to a naive reading of their specification, and firm about what they lack.

Formats that somebody else's library reads are held to that library in ``test_packing_peers.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineFormat, AffineParams, ScaleDtype, round_scales
from qwen3_export.quantizers.packing.awq import NIBBLE_ORDER, pack_awq, unpack_awq
from qwen3_export.quantizers.packing.bits import (
    from_unsigned,
    pack_bits,
    pack_words,
    to_unsigned,
    unpack_bits,
    unpack_words,
)
from qwen3_export.quantizers.packing.compressed_tensors import (
    pack_int_quantized,
    pack_packed,
    unpack_int_quantized,
    unpack_packed,
)
from qwen3_export.quantizers.packing.coreml import (
    pack_blockwise_shift_scale,
    pack_lut_to_dense,
    unpack_blockwise_shift_scale,
    unpack_lut_to_dense,
)
from qwen3_export.quantizers.packing.executorch import (
    pack_embedding_int4,
    pack_xnnpack_int4,
    unpack_embedding_int4,
    unpack_xnnpack_int4,
)
from qwen3_export.quantizers.packing.gptq import pack_gptq, unpack_gptq
from qwen3_export.quantizers.packing.mlx import pack_mlx, unpack_mlx
from qwen3_export.quantizers.packing.onnx import pack_matmul_nbits, unpack_matmul_nbits
from qwen3_export.quantizers.palette import PaletteParams

Codes = NDArray[np.int8]
Coded = tuple[Codes, AffineParams]


def random_codes(
    rows: int,
    columns: int,
    group_size: int,
    *,
    num_bits: int,
    symmetric: bool,
    scale: ScaleDtype = "f16",
    seed: int = 0,
) -> Coded:
    """Every code and every zero point may occur, those at the ends included."""
    random = np.random.default_rng(seed)
    low, high = -(1 << (num_bits - 1)), 1 << (num_bits - 1)
    groups = columns // group_size
    scales = round_scales(random.uniform(0.001, 0.1, (rows, groups)).astype(np.float32), scale)
    zeros = random.integers(low, high, (rows, groups)).astype(np.int8)
    params = AffineParams(scale_RG=scales, zero_point_RG=np.zeros_like(zeros) if symmetric else zeros)
    return random.integers(low, high, (rows, columns)).astype(np.int8), params


def values_of(coded: Coded) -> NDArray[np.float32]:
    return AffineFormat(num_bits=8).dequantize(*coded)


def assert_equal(unpacked: Coded, original: Coded) -> None:
    np.testing.assert_array_equal(unpacked[0], original[0])
    np.testing.assert_array_equal(unpacked[1].scale_RG, original[1].scale_RG)
    np.testing.assert_array_equal(unpacked[1].zero_point_RG, original[1].zero_point_RG)
    for array in (unpacked[1].scale_RG, original[1].scale_RG):
        assert array.dtype == np.float32
    assert unpacked[0].dtype == unpacked[1].zero_point_RG.dtype == np.int8


def bit(stream: bytes, index: int) -> int:
    return stream[index // 8] >> (index % 8) & 1


def integer(stream: bytes, index: int, num_bits: int) -> int:
    """Number ``index`` of a bit stream, read bit by bit."""
    return sum(bit(stream, index * num_bits + k) << k for k in range(num_bits))


shapes = {"rows": st.integers(1, 5).map(lambda n: 32 * n), "groups": st.integers(1, 4), "seed": st.integers(0, 999)}


# Packs and unpacks again, for codes of the given bits.
ROUND_TRIPS: dict[str, tuple[tuple[int, ...], Callable[[Coded, int], Coded]]] = {
    "onnx": (
        (2, 4, 8),
        lambda coded, bits: unpack_matmul_nbits(pack_matmul_nbits(*coded, num_bits=bits), num_bits=bits),
    ),
    "coreml": (
        (4, 8),
        lambda coded, bits: unpack_blockwise_shift_scale(
            pack_blockwise_shift_scale(*coded, num_bits=bits), num_bits=bits
        ),
    ),
    "gptq v2": (
        (2, 3, 4, 8),
        lambda coded, bits: unpack_gptq(pack_gptq(*coded, num_bits=bits, checkpoint_format="gptq_v2"), num_bits=bits),
    ),
    "awq": ((4,), lambda coded, _: unpack_awq(pack_awq(*coded))),
    "pack-quantized": (
        (2, 3, 4, 5, 6, 7, 8),
        lambda coded, bits: unpack_packed(pack_packed(*coded, num_bits=bits), num_bits=bits),
    ),
    "int-quantized": ((4, 8), lambda coded, _: unpack_int_quantized(pack_int_quantized(*coded))),
    "mlx f32": ((2, 3, 4, 5, 6, 8), lambda coded, bits: unpack_mlx(pack_mlx(*coded, num_bits=bits), num_bits=bits)),
    "mlx f16": (
        (2, 3, 4, 5, 6, 8),
        lambda coded, bits: unpack_mlx(pack_mlx(*coded, num_bits=bits, dtype="f16"), num_bits=bits),
    ),
}


@pytest.mark.parametrize("form", ROUND_TRIPS)
@settings(max_examples=25, deadline=None)
@given(symmetric=st.booleans(), group=st.sampled_from([32, 64]), which=st.integers(0, 6), **shapes)
def test_round_trip(form: str, symmetric: bool, group: int, which: int, rows: int, groups: int, seed: int) -> None:
    bits, there_and_back = ROUND_TRIPS[form]
    num_bits = bits[which % len(bits)]
    coded = random_codes(rows, group * groups, group, num_bits=num_bits, symmetric=symmetric, seed=seed)
    before = coded[0].copy(), coded[1].zero_point_RG.copy()
    assert_equal(there_and_back(coded, num_bits), coded)
    np.testing.assert_array_equal(coded[0], before[0])
    np.testing.assert_array_equal(coded[1].zero_point_RG, before[1])


@settings(max_examples=60, deadline=None)
@given(num_bits=st.integers(1, 8), rows=st.integers(1, 4), eights=st.integers(1, 9), seed=st.integers(0, 999))
def test_bit_stream_is_the_lowest_bit_first(num_bits: int, rows: int, eights: int, seed: int) -> None:
    integers = np.random.default_rng(seed).integers(0, 1 << num_bits, (rows, 8 * eights)).astype(np.uint8)
    packed = pack_bits(integers, num_bits)
    assert packed.shape == (rows, eights * num_bits)
    np.testing.assert_array_equal(unpack_bits(packed, num_bits), integers)
    stream = packed[-1].tobytes()
    assert [integer(stream, n, num_bits) for n in range(8 * eights)] == integers[-1].tolist()
    if eights % 4 == 0:
        words = pack_words(integers, num_bits)
        assert words.tobytes() == packed.tobytes()
        np.testing.assert_array_equal(unpack_words(words, num_bits), integers)


def test_signed_and_unsigned_codes() -> None:
    for num_bits in range(2, 9):
        half = 1 << (num_bits - 1)
        codes = np.arange(-half, half).astype(np.int8)
        np.testing.assert_array_equal(to_unsigned(codes, num_bits), np.arange(2 * half))
        np.testing.assert_array_equal(from_unsigned(to_unsigned(codes, num_bits), num_bits), codes)


def test_matmul_nbits_as_documented() -> None:
    """dequantized = (code - zero point) * scale, nibbles low first, zero points row by row, padded to bytes."""
    coded = random_codes(4, 96, 32, num_bits=4, symmetric=False)
    packed = pack_matmul_nbits(*coded, num_bits=4)
    assert packed.weight_OGY.shape == (4, 3, 16)
    assert packed.zero_points_OY is not None
    assert packed.zero_points_OY.shape == (4, 2)
    for row, column in ((0, 0), (1, 1), (2, 40), (3, 95)):
        group, within = divmod(column, 32)
        code = packed.weight_OGY[row, group, within // 2] >> (4 * (within % 2)) & 15
        zero = packed.zero_points_OY[row, group // 2] >> (4 * (group % 2)) & 15
        expected = np.float32(int(code) - int(zero)) * packed.scale_OG[row, group]
        assert values_of(coded)[row, column] == expected
    symmetric = pack_matmul_nbits(*random_codes(4, 64, 32, num_bits=4, symmetric=True), num_bits=4)
    assert symmetric.zero_points_OY is None


def test_gptq_versions_differ_by_one() -> None:
    codes, params = random_codes(32, 64, 32, num_bits=4, symmetric=False)
    params = replace(params, zero_point_RG=np.maximum(params.zero_point_RG, -7))
    first = pack_gptq(codes, params, num_bits=4)
    second = pack_gptq(codes, params, num_bits=4, checkpoint_format="gptq_v2")
    assert (first.checkpoint_format, second.checkpoint_format) == ("gptq", "gptq_v2")
    np.testing.assert_array_equal(unpack_words(first.qzeros_GW, 4) + 1, unpack_words(second.qzeros_GW, 4))
    np.testing.assert_array_equal(first.qweight_WO, second.qweight_WO)
    assert_equal(unpack_gptq(first, num_bits=4), (codes, params))
    mislabelled = unpack_gptq(replace(second, checkpoint_format="gptq"), num_bits=4)
    assert (mislabelled[1].zero_point_RG != params.zero_point_RG).any()


@pytest.mark.parametrize("num_bits", [3, 4])
def test_gptq_words_run_down_the_columns(num_bits: int) -> None:
    codes, params = random_codes(32, 64, 32, num_bits=num_bits, symmetric=True)
    packed = pack_gptq(codes, params, num_bits=num_bits)
    assert packed.qweight_WO.shape == (64 * num_bits // 32, 32)
    assert packed.g_idx_I.tolist() == [0] * 32 + [1] * 32
    for row in (0, 31):
        stream = np.ascontiguousarray(packed.qweight_WO[:, row]).tobytes()
        half = 1 << (num_bits - 1)
        assert [integer(stream, n, num_bits) - half for n in range(64)] == codes[row].tolist()


def test_awq_nibble_order() -> None:
    codes = np.zeros((8, 32), np.int8) - 8
    params = AffineParams(scale_RG=np.ones((8, 1), np.float32), zero_point_RG=np.zeros((8, 1), np.int8))
    for out in range(8):
        codes[out, 0] = out - 8  # counted from 0, row n holds n
    word = int(pack_awq(codes, params).qweight_IW[0, 0]) & 0xFFFFFFFF
    assert tuple(word >> (4 * k) & 15 for k in range(8)) == NIBBLE_ORDER == (0, 2, 4, 6, 1, 3, 5, 7)


def test_xnnpack_nibbles_and_scales() -> None:
    codes, params = random_codes(8, 64, 32, num_bits=4, symmetric=True, scale="bf16")
    packed = pack_xnnpack_int4(codes, params)
    np.testing.assert_array_equal(packed.weight_OY & 15, codes[:, 0::2] + 8)
    np.testing.assert_array_equal(packed.weight_OY >> 4, codes[:, 1::2] + 8)
    assert_equal(unpack_xnnpack_int4(packed), (codes, params))
    channel = random_codes(8, 64, 64, num_bits=4, symmetric=True, scale="f32")
    assert_equal(unpack_xnnpack_int4(pack_xnnpack_int4(*channel)), channel)
    with pytest.raises(QuantizationError, match="scale_dtype='bf16'"):
        pack_xnnpack_int4(*random_codes(8, 64, 32, num_bits=4, symmetric=True, scale="f32"))
    with pytest.raises(QuantizationError, match="zero points"):
        pack_xnnpack_int4(*random_codes(8, 64, 32, num_bits=4, symmetric=False, scale="bf16"))
    with pytest.raises(QuantizationError, match="positive"):
        pack_xnnpack_int4(codes, replace(params, scale_RG=-params.scale_RG))


def test_embedding_int4_has_even_columns_high() -> None:
    codes, _ = random_codes(6, 32, 32, num_bits=4, symmetric=True)
    packed = pack_embedding_int4(codes)
    np.testing.assert_array_equal(packed >> 4, codes[:, 0::2] + 8)
    np.testing.assert_array_equal(unpack_embedding_int4(packed), codes)
    with pytest.raises(QuantizationError, match="even"):
        pack_embedding_int4(codes[:, :31])


@pytest.mark.parametrize("num_bits", [2, 3, 4, 6, 8])
def test_palette_round_trip_and_stream(num_bits: int) -> None:
    random = np.random.default_rng(num_bits)
    codes = random.integers(0, 1 << num_bits, (6, 5)).astype(np.uint8)  # 30 indices do not fill bytes
    params = PaletteParams(table_LE=random.normal(size=(3, 1 << num_bits)).astype(np.float32))
    packed = pack_lut_to_dense(codes, params, num_bits=num_bits)
    assert packed.lut_L1E1.shape == (3, 1, 1 << num_bits, 1)
    stream = packed.indices_Y.tobytes()
    assert [integer(stream, n, num_bits) for n in range(30)] == codes.reshape(-1).tolist()
    assert len(stream) == -(-30 * num_bits // 8)
    back, tables = unpack_lut_to_dense(packed, num_bits=num_bits)
    np.testing.assert_array_equal(back, codes)
    np.testing.assert_array_equal(tables.table_LE, params.table_LE)
    with pytest.raises(QuantizationError, match="do not go with"):
        pack_lut_to_dense(codes[:5], params, num_bits=num_bits)


def test_mlx_bias_is_the_value_of_code_zero() -> None:
    codes, params = random_codes(32, 64, 32, num_bits=4, symmetric=False)
    exact = pack_mlx(codes, params, num_bits=4)
    unsigned = unpack_words(exact.weight_OW.view(np.int32), 4).reshape(32, 2, 32).astype(np.float64)
    read = unsigned * exact.scales_OG[..., None].astype(np.float64) + exact.biases_OG[..., None]
    np.testing.assert_array_equal(read.reshape(32, 64).astype(np.float32), values_of((codes, params)))
    half = pack_mlx(codes, params, num_bits=4, dtype="f16")
    assert (abs(half.biases_OG - exact.biases_OG) <= 2**-11 * abs(exact.biases_OG)).all()


def _codes(*shape: int, group: int = 32, num_bits: int = 4, symmetric: bool = True, scale: ScaleDtype = "f16") -> Coded:
    return random_codes(*shape, group, num_bits=num_bits, symmetric=symmetric, scale=scale)


REFUSALS: dict[str, tuple[Callable[[], Any], str]] = {
    "onnx bits": (lambda: pack_matmul_nbits(*_codes(4, 64, num_bits=3), num_bits=3), "stores 2, 4, 8 bits, not 3"),
    "onnx block": (lambda: pack_matmul_nbits(*_codes(4, 96, group=48), num_bits=4), "not 48"),
    "coreml bits": (lambda: pack_blockwise_shift_scale(*_codes(4, 64, num_bits=6), num_bits=6), "4, 8 bits, not 6"),
    "gptq columns": (lambda: pack_gptq(*_codes(32, 36, group=36), num_bits=4), "multiple of 32"),
    "gptq rows": (lambda: pack_gptq(*_codes(33, 64), num_bits=4), "33 integers of 4 bits"),
    "gptq scales": (lambda: pack_gptq(*_codes(32, 64, scale="f32"), num_bits=4), "scale_dtype='f16'"),
    "gptq zero": (lambda: pack_gptq(*_codes(64, 64, symmetric=False), num_bits=4), "use 'gptq_v2'"),
    "awq rows": (lambda: pack_awq(*_codes(12, 64)), "out_features 12"),
    "awq scales": (lambda: pack_awq(*_codes(16, 64, scale="f32")), "f16"),
    "packed columns": (lambda: pack_packed(*_codes(32, 36, group=36), num_bits=4), "36 integers"),
    "mlx scales": (lambda: pack_mlx(*_codes(4, 64, scale="f32"), num_bits=4, dtype="bf16"), "bf16"),
    "mlx group": (lambda: pack_mlx(*_codes(4, 256, group=256), num_bits=4), "not 256"),
    "mlx bits": (lambda: pack_mlx(*_codes(4, 64, num_bits=7), num_bits=7), "not 7"),
    "other scales": (lambda: pack_awq(_codes(8, 64)[0], _codes(16, 64)[1]), "do not go with scales"),
    "palette bits": (
        lambda: pack_lut_to_dense(np.zeros((2, 8), np.uint8), PaletteParams(table_LE=np.zeros((1, 32))), num_bits=5),
        "not 5",
    ),
    "stream": (lambda: pack_bits(np.zeros((1, 3), np.uint8), 4), "3 integers of 4 bits"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_are_clear(case: str) -> None:
    pack, message = REFUSALS[case]
    with pytest.raises(QuantizationError, match=message):
        pack()


def test_gptq_with_reordered_groups_is_refused() -> None:
    packed = pack_gptq(*_codes(32, 64), num_bits=4)
    with pytest.raises(QuantizationError, match="desc_act"):
        unpack_gptq(replace(packed, g_idx_I=packed.g_idx_I[::-1].copy()), num_bits=4)
