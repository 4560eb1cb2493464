"""Encoding: what it is made of, what it does not depend on, and odd blocks."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.ggml import GGML_FORMATS, GgmlFormat
from qwen3_export.quantizers.ggml.affine import fit_affine_superblocks
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.ggml.planes import pack_planes, unpack_planes
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES
from qwen3_export.quantizers.ggml.symmetric import fit_symmetric_blocks, fit_symmetric_superblocks

Values = NDArray[np.float32]


def _importance(columns: int) -> Values:
    return np.random.default_rng(5).lognormal(size=columns).astype(np.float32)


@pytest.mark.parametrize("name", BLOCK_SHAPES)
@pytest.mark.parametrize("important", [False, True])
def test_packed_codes_mean_the_same_in_a_file(name: str, important: bool, random_weights: dict[str, Values]) -> None:
    """What the solver was told the codes mean is what the file will say."""
    values, number_format = random_weights["heavy"], GGML_FORMATS[name]
    codes, params = number_format.encode(values, _importance(values.shape[1]) if important else None)
    unpacked, found = number_format.unpack(number_format.pack(codes, params))
    np.testing.assert_array_equal(unpacked, codes)
    np.testing.assert_array_equal(number_format.dequantize(unpacked, found), number_format.dequantize(codes, params))


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_every_code_is_the_nearest(name: str, random_weights: dict[str, Values]) -> None:
    values, number_format = random_weights["heavier"][:4], GGML_FORMATS[name]
    shape, params = number_format.shape, number_format.fit(values)
    chosen = np.abs(number_format.dequantize(number_format.round(values, params), params) - values)
    tolerance = 1e-5 * np.abs(values).max()  # two levels may be equally near up to rounding
    for code in range(shape.code_low, shape.code_high + 1):
        codes = np.full(values.shape, code, np.int8)
        other = np.abs(number_format.dequantize(codes, params) - values)
        assert (chosen <= other + tolerance).all()


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_rounding_column_by_column_gives_the_same_codes(name: str, random_weights: dict[str, Values]) -> None:
    values, number_format = random_weights["normal"][:, :256], GGML_FORMATS[name]
    params = number_format.fit(values)
    whole = number_format.round(values, params)
    for column in (0, 15, 16, 31, 32, 255):
        params_of_group = _group(params, column // number_format.shape.group_size)
        codes = number_format.round(values[:, column : column + 1], params_of_group)
        np.testing.assert_array_equal(codes[:, 0], whole[:, column])
        one = number_format.dequantize(codes, params_of_group)
        np.testing.assert_array_equal(one[:, 0], number_format.dequantize(whole, params)[:, column])


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_bytes_do_not_depend_on_chunks_or_threads(name: str, random_weights: dict[str, Values]) -> None:
    values, number_format = random_weights["heavy"], GGML_FORMATS[name]
    importance = _importance(values.shape[1])
    whole = _blocks(number_format, values, importance)
    chunks = [values[:1], values[1:6], values[6:]]
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda chunk: _blocks(number_format, chunk, importance), chunks))
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_importance_for_each_row_is_taken_row_by_row(name: str, random_weights: dict[str, Values]) -> None:
    values, number_format = random_weights["heavy"][:3], GGML_FORMATS[name]
    importance = np.stack([_importance(1024), np.ones(1024, np.float32), _importance(1024)[::-1]])
    together = number_format.fit(values, importance)
    for row in range(3):
        alone = number_format.fit(values[row : row + 1], importance[row])
        np.testing.assert_array_equal(together.scale_RG[row], alone.scale_RG[0])
        np.testing.assert_array_equal(together.offset_RG[row], alone.offset_RG[0])


@pytest.mark.parametrize("name", [name for name, shape in BLOCK_SHAPES.items() if shape.block_size == 32])
@pytest.mark.parametrize("columns", [32, 96, 288, 1056])
def test_rows_of_any_number_of_blocks(name: str, columns: int) -> None:
    """Kernels take eight blocks at a time; the blocks at a row's end must come out as they do in the middle."""
    number_format = GGML_FORMATS[name]
    values = np.random.default_rng(3).standard_normal((3, columns)).astype(np.float32)
    importance = _importance(columns)
    blocks = _blocks(number_format, values, importance).reshape(3, -1, number_format.block_bytes)
    for block in range(columns // 32):
        where = slice(32 * block, 32 * block + 32)
        # The importance's scale must not matter, so a block alone is the block among others.
        alone = _blocks(number_format, values[:, where], importance[where])
        np.testing.assert_array_equal(blocks[:, block], alone)


@pytest.mark.parametrize("name", BLOCK_SHAPES)
@pytest.mark.parametrize("important", [False, True])
def test_odd_blocks_stay_sane(name: str, important: bool) -> None:
    """Zeros stay zero; constants, one sign and tiny numbers come back within the format's step; an outlier survives."""
    number_format = GGML_FORMATS[name]
    random = np.random.default_rng(1)
    outlier = random.standard_normal(256) * 1e-2
    outlier[37] = 100.0
    blocks = {
        "zeros": np.zeros(256),
        "constant": np.full(256, 0.03),
        "negative constant": np.full(256, -0.03),
        "negative": -random.uniform(0.5, 1.0, 256),
        "outlier": outlier,
        "subnormal": random.standard_normal(256) * 1e-40,
        "tiny": random.standard_normal(256) * 1e-7,
        "alternating": np.where(np.arange(256) % 2, 1.0, -1.0),
    }
    values = np.array(list(blocks.values())).astype(np.float32)
    importance = None
    if important:
        importance = _importance(256)
        importance[:64] = 0
    decoded = dict(zip(blocks, number_format.dequantize(*number_format.encode(values, importance)), strict=True))
    assert all(np.isfinite(row).all() for row in decoded.values())
    assert not decoded["zeros"].any()
    assert np.abs(decoded["subnormal"]).max() <= 1e-30
    for odd, worst in {"constant": 0.02, "negative constant": 0.02, "negative": 0.2, "alternating": 0.15}.items():
        error = np.abs(decoded[odd] - blocks[odd]).mean()
        assert error <= worst * np.abs(blocks[odd]).max(), odd
    if not important:
        assert abs(decoded["outlier"][37] - 100.0) <= 5.0
    assert np.abs(decoded["tiny"]).max() <= 2 * np.abs(blocks["tiny"]).max()


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_columns_without_any_importance_are_still_stored_well(name: str, random_weights: dict[str, Values]) -> None:
    values, number_format = random_weights["normal"], GGML_FORMATS[name]
    plain = _mean_square_error(number_format.dequantize(*number_format.encode(values)), values)
    unimportant = number_format.dequantize(*number_format.encode(values, np.zeros(1024, np.float32)))
    assert _mean_square_error(unimportant, values) <= 1.05 * plain


@pytest.mark.parametrize("name", BLOCK_SHAPES)
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_the_unit_of_importance_does_not_matter(name: str, factor: float, random_weights: dict[str, Values]) -> None:
    values, number_format, importance = random_weights["heavy"][:4], GGML_FORMATS[name], _importance(1024)
    usual = number_format.dequantize(*number_format.encode(values, importance)) - values
    scaled = number_format.dequantize(*number_format.encode(values, importance * np.float32(factor))) - values
    np.testing.assert_allclose((scaled**2 * importance).sum(), (usual**2 * importance).sum(), rtol=1e-3)


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q4_0", "IQ4_XS"])
def test_arrays_that_may_not_be_written_cost_no_second_compilation(
    name: str, random_weights: dict[str, Values]
) -> None:
    number_format, values = GGML_FORMATS[name], random_weights["normal"].copy()
    blocks = _blocks(number_format, values)
    number_format.dequantize(*number_format.unpack(blocks))
    kernels = [fit_affine_superblocks, fit_symmetric_superblocks, fit_symmetric_blocks, pack_planes, unpack_planes]
    before = [len(kernel.signatures) for kernel in kernels]  # type: ignore[attr-defined]
    values.flags.writeable = False
    np.testing.assert_array_equal(_blocks(number_format, values), blocks)
    blocks.flags.writeable = False
    number_format.dequantize(*number_format.unpack(blocks))
    assert [len(kernel.signatures) for kernel in kernels] == before  # type: ignore[attr-defined]


def test_importance_of_another_shape_is_refused() -> None:
    with pytest.raises(QuantizationError, match=r"`importance` of shape \(32,\)"):
        GGML_FORMATS["Q4_0"].encode(np.zeros((2, 64), np.float32), np.ones(32, np.float32))


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_weights_beyond_float16_are_refused(name: str) -> None:
    values = np.zeros((2, 256), np.float32)
    values[1, 200] = -7e4
    with pytest.raises(QuantizationError, match="70000"):
        GGML_FORMATS[name].encode(values)


def _blocks(number_format: GgmlFormat, values: Values, importance: Values | None = None) -> NDArray[np.uint8]:
    return number_format.pack(*number_format.encode(values, importance))


def _group(params: BlockParams, index: int) -> BlockParams:
    """The parameters that round the columns of one group; they do not pack."""
    group = slice(index, index + 1)
    return replace(params, scale_RG=params.scale_RG[:, group], offset_RG=params.offset_RG[:, group])


def _mean_square_error(decoded: Values, values: Values) -> float:
    return float(np.square(decoded.astype(np.float64) - values).mean())
