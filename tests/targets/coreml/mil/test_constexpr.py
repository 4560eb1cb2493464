"""Compressed constants, against what they were made from and against coremltools' own decompression."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

coremltools = pytest.importorskip("coremltools")


def of_type(name: str, values: np.ndarray) -> np.ndarray:
    """Small integers as MIL's builder takes them: numpy with a remark of how many bits there are."""
    from coremltools.converters.mil.mil import types

    return values.astype(types.nptype_from_builtin(types.string_to_builtin(name)))


def decoded(programs: Any, make: Any, *, mode: str = "exact", target: str = "iOS18") -> np.ndarray:
    """The constant that ``make`` declares, through a package that adds 0 to it."""
    x = np.zeros((1,), np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        constant = make(mb)
        return {"y": mb.add(x=mb.cast(x=constant, dtype="fp32"), y=x)}

    found: np.ndarray = programs.open(body, {"x": x}, target=target).run({"x": x}, mode=mode)["y"]
    return found


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(["int4", "uint4", "int8", "uint8"]),
    blocks=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 2)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 2)),
    shifted=st.booleans(),
)
def test_blocks_share_a_scale_and_an_offset(
    programs: Any, name: str, blocks: tuple[int, ...], size: tuple[int, ...], shifted: bool
) -> None:
    random = np.random.default_rng(0)
    bits, low = int(name[-1]), (0 if name[0] == "u" else -(1 << (int(name[-1]) - 1)))
    shape = tuple(b * s for b, s in zip(blocks, size, strict=True))
    data = random.integers(low, low + (1 << bits), shape)
    scale = random.uniform(0.01, 0.1, blocks).astype(np.float16)
    offset = random.integers(low, low + (1 << bits), blocks)

    def make(mb: Any) -> Any:
        extra = {"offset": of_type(name, offset)} if shifted else {}
        return mb.constexpr_blockwise_shift_scale(data=of_type(name, data), scale=scale, **extra)

    spread_scale, spread_offset = (
        np.kron(values, np.ones(size)) for values in (scale.astype(np.float64), offset * shifted)
    )
    expected = spread_scale * (data - spread_offset)
    np.testing.assert_allclose(decoded(programs, make), expected, rtol=1e-6)
    np.testing.assert_array_equal(decoded(programs, make, mode="fp16"), expected.astype(np.float16))


@settings(max_examples=8, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 6, 8]),
    groups=st.integers(1, 3),
    columns=st.integers(1, 2),
    rows=st.integers(1, 4),
)
def test_tables_serve_blocks_of_rows_and_columns(
    programs: Any, bits: int, groups: int, columns: int, rows: int
) -> None:
    random = np.random.default_rng(0)
    indices = random.integers(0, 1 << bits, (groups * rows, columns * 3))
    lut = random.normal(size=(groups, columns, 1 << bits, 1)).astype(np.float16)

    def make(mb: Any) -> Any:
        return mb.constexpr_lut_to_dense(indices=of_type(f"uint{bits}", indices), lut=lut)

    expected = [
        [lut[i // rows, j // 3, indices[i, j], 0] for j in range(indices.shape[1])] for i in range(indices.shape[0])
    ]
    np.testing.assert_array_equal(decoded(programs, make), np.array(expected))


@pytest.mark.parametrize("axis", [0, 1])
def test_entries_of_a_table_may_be_vectors(programs: Any, axis: int) -> None:
    from coremltools.optimize._utils import lut_to_dense

    random = np.random.default_rng(0)
    indices = of_type("uint2", random.integers(0, 4, (4, 6)))
    lut = random.normal(size=(2, 1, 4, 3)).astype(np.float16)

    def make(mb: Any) -> Any:
        return mb.constexpr_lut_to_dense(indices=indices, lut=lut, vector_axis=np.int32(axis))

    np.testing.assert_array_equal(decoded(programs, make), lut_to_dense(indices, lut, np.int32(axis)))


def test_sparse_constants(programs: Any) -> None:
    random = np.random.default_rng(0)
    mask = random.integers(0, 2, (5, 7))
    values = random.normal(size=mask.sum()).astype(np.float16)
    dense = np.zeros(mask.shape)
    dense[mask == 1] = values

    def make(mb: Any) -> Any:
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=of_type("uint1", mask))

    np.testing.assert_array_equal(decoded(programs, make), dense)


def test_sparse_codes_of_a_table_and_of_a_scale(programs: Any) -> None:
    random = np.random.default_rng(0)
    mask = random.integers(0, 2, (6, 4))
    codes, lut = random.integers(0, 4, mask.sum()), random.normal(size=(2, 1, 4, 1)).astype(np.float16)
    scale = random.uniform(0.1, 1, (1, 4)).astype(np.float16)

    def from_table(mb: Any) -> Any:
        grown, found = mb.constexpr_lut_to_sparse(
            indices_mask=of_type("uint1", mask), indices_nonzero_data=of_type("uint2", codes), lut=lut
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=found, mask=grown)

    def from_scale(mb: Any) -> Any:
        same, found = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=of_type("uint1", mask), nonzero_data=of_type("int8", codes), scale=scale
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=found, mask=same)

    spread = np.zeros(mask.shape, int)
    spread[mask == 1] = codes
    looked_up = np.array([lut[row // 3, 0, spread[row], 0] for row in range(6)]) * mask
    np.testing.assert_array_equal(decoded(programs, from_table), looked_up)
    np.testing.assert_allclose(decoded(programs, from_scale), scale.astype(np.float64) * spread, rtol=1e-6)


def test_a_table_whose_entries_are_codes_themselves(programs: Any) -> None:
    random = np.random.default_rng(0)
    indices, lut = random.integers(0, 16, (4, 6)), random.integers(-128, 128, (1, 1, 16, 1)).astype(np.int8)
    scale = random.uniform(0.1, 1, (4, 1)).astype(np.float16)

    def make(mb: Any) -> Any:
        found = mb.constexpr_lut_to_dense(indices=of_type("uint4", indices), lut=lut)
        return mb.constexpr_blockwise_shift_scale(data=found, scale=scale)

    expected = scale.astype(np.float64) * lut[0, 0, indices, 0]
    np.testing.assert_allclose(decoded(programs, make), expected, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_ios_16s_affine_constants(programs: Any, axis: int) -> None:
    random = np.random.default_rng(0)
    data = random.integers(0, 256, (3, 5)).astype(np.uint8)
    size = data.shape[axis]
    scale, zero_point = random.uniform(0.1, 1, size).astype(np.float32), random.integers(0, 256, size).astype(np.uint8)

    def make(mb: Any) -> Any:
        return mb.constexpr_affine_dequantize(
            quantized_data=data, scale=scale, zero_point=zero_point, axis=np.int32(axis)
        )

    spread = (slice(None), None) if axis == 0 else (None, slice(None))
    expected = scale.astype(np.float64)[spread] * (data - zero_point.astype(float)[spread])
    np.testing.assert_allclose(decoded(programs, make, target="iOS16"), expected, rtol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_ios_16s_tables_masks_and_casts(programs: Any, bits: int) -> None:
    random = np.random.default_rng(bits)
    indices, lut = random.integers(0, 1 << bits, (3, 5)), random.normal(size=1 << bits).astype(np.float16)
    stream = (indices.reshape(-1, 1) >> np.arange(bits)) & 1
    packed = np.packbits(stream.astype(np.uint8).reshape(-1), bitorder="little")
    mask, source = indices % 2, random.normal(size=(2, 3)).astype(np.float16)
    values = random.normal(size=mask.sum()).astype(np.float16)
    shape = np.array([3, 5], np.uint32)

    def table(mb: Any) -> Any:
        return mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=shape)

    def sparse(mb: Any) -> Any:
        bits_of_mask = np.packbits(mask.astype(np.uint8).reshape(-1), bitorder="little")
        return mb.constexpr_sparse_to_dense(nonzero_data=values, mask=bits_of_mask, shape=shape)

    def cast(mb: Any) -> Any:
        return mb.constexpr_cast(source_val=source, output_dtype="fp32")

    dense = np.zeros((3, 5))
    dense[mask == 1] = values
    np.testing.assert_array_equal(decoded(programs, table, target="iOS16"), lut[indices])
    np.testing.assert_array_equal(decoded(programs, sparse, target="iOS16"), dense)
    np.testing.assert_array_equal(decoded(programs, cast, target="iOS16"), source)
