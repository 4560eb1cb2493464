"""What is promised of every number format, on every kind of them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import BF16, F16, FLOATS
from qwen3_export.quantizers.formats import NumberFormat, PackedFormat, as_packed
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.params import join_columns, join_rows

Values = NDArray[np.float32]

FORMATS: dict[str, NumberFormat] = {
    number_format.name: number_format
    for number_format in (
        *FLOATS.values(),
        *GGML_FORMATS.values(),
        AffineFormat(num_bits=4, group_size=64, scale_dtype="f16", negative_scales=True),
        AffineFormat(num_bits=3, group_size=32, symmetric=False),
        AffineFormat(num_bits=8),
        PaletteFormat(num_bits=4, rows_per_table=8),
        PaletteFormat(num_bits=2),
    )
}
PACKED = [name for name, number_format in FORMATS.items() if isinstance(number_format, PackedFormat)]
SCALED = [name for name, number_format in FORMATS.items() if number_format.codebook is not None]
IMPORTANCE = np.random.default_rng(5).lognormal(size=512).astype(np.float32)


@pytest.fixture
def values(random_weights: dict[str, Values]) -> Values:
    return np.ascontiguousarray(random_weights["heavy"][:16, :512])


def assert_same_params(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    for field in fields(expected) if expected is not None else ():
        np.testing.assert_array_equal(getattr(found, field.name), getattr(expected, field.name), err_msg=field.name)


@pytest.mark.parametrize("name", FORMATS)
def test_encode_is_fit_and_round(name: str, values: Values) -> None:
    number_format = FORMATS[name]
    codes, params = number_format.encode(values, IMPORTANCE)
    fitted = number_format.fit(values, IMPORTANCE)
    assert_same_params(fitted, params)
    np.testing.assert_array_equal(number_format.round(values, fitted), codes)
    assert codes.shape == values.shape


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_is_the_way_back(name: str, values: Values) -> None:
    """What was stored is stored again as it is, and comes close to what was asked for."""
    number_format = FORMATS[name]
    codes, params = number_format.encode(values)
    stored = number_format.dequantize(codes, params)
    assert stored.dtype == np.float32
    assert stored.shape == values.shape
    np.testing.assert_array_equal(number_format.dequantize(number_format.round(stored, params), params), stored)
    bits = number_format.bits_per_weight(values.shape)
    assert np.square(stored - values).sum() < 0.5 ** min(bits - 1, 8) * np.square(values).sum()


@pytest.mark.parametrize("name", FORMATS)
def test_rows_that_share_no_parameters_do_not_depend_on_each_other(name: str, values: Values) -> None:
    number_format = FORMATS[name]
    together = number_format.rows_together or len(values)
    codes, params = number_format.encode(values, IMPORTANCE)
    last = slice(len(values) - together, len(values))
    alone, alone_params = number_format.encode(values[last], IMPORTANCE)
    np.testing.assert_array_equal(alone, codes[last])
    if params is not None:
        assert_same_params(alone_params, params.rows(last, of=len(values)))
        parts = [params.rows(slice(i, i + together), of=len(values)) for i in range(0, len(values), together)]
        assert_same_params(join_rows(parts), params)


@pytest.mark.parametrize("name", SCALED)
def test_blocks_of_columns_do_not_depend_on_each_other(name: str, values: Values) -> None:
    number_format = FORMATS[name]
    together = number_format.columns_together
    if together is None:
        return
    whole = number_format.fit(values, IMPORTANCE, weighting="importance")
    parts = [
        number_format.fit(np.ascontiguousarray(values[:, i : i + together]), IMPORTANCE[i : i + together],
                          weighting="importance")
        for i in range(0, values.shape[1], together)
    ]  # fmt: skip
    assert_same_params(join_columns(parts), whole)


@pytest.mark.parametrize("name", SCALED)
def test_a_code_is_a_scale_times_a_level(name: str, values: Values) -> None:
    number_format = FORMATS[name]
    book = number_format.codebook
    assert book is not None
    codes, params = number_format.encode(values)
    levels = book.levels_L[codes] if book.levels_L.size else codes.astype(np.float32)
    scale, offset = (np.repeat(array, 512 // array.shape[1], axis=1) for array in (params.scale_RG, params.offset_RG))
    np.testing.assert_allclose(number_format.dequantize(codes, params), scale * levels - offset, rtol=1e-5, atol=1e-7)
    if not book.levels_L.size:
        assert book.low <= codes.min()
        assert codes.max() <= book.high


@pytest.mark.parametrize("name", FORMATS)
def test_refitted_parameters_are_never_worse(name: str, values: Values) -> None:
    number_format = FORMATS[name]
    mixing = np.eye(512) + 0.1 * np.random.default_rng(2).normal(size=(512, 512))
    metric = (mixing @ mixing.T).astype(np.float32)
    codes, params = number_format.encode(values)

    def gradient_of(found: Any) -> Values:
        return np.asarray((number_format.dequantize(codes, found) - values) @ metric, np.float32)

    def row_losses(found: Any) -> NDArray[np.float64]:
        error = (number_format.dequantize(codes, found) - values).astype(np.float64)
        return np.einsum("rj,jk,rk->r", error, metric.astype(np.float64), error)

    gradient = gradient_of(params)
    kept = gradient.copy()
    found, moved = number_format.refit(codes, params, gradient_RJ=gradient, metric_JJ=metric)
    np.testing.assert_array_equal(gradient, kept)
    if name not in SCALED:
        assert found is params
        return
    assert (row_losses(found) <= row_losses(params) * (1 + 1e-4)).all()
    assert row_losses(found).sum() < row_losses(params).sum()
    np.testing.assert_allclose(moved, gradient_of(found), atol=2e-3 * abs(gradient).max())


@pytest.mark.parametrize("name", FORMATS)
def test_arrays_say_everything_and_are_known_beforehand(name: str, values: Values) -> None:
    number_format = FORMATS[name]
    codes, params = number_format.encode(values)
    arrays = number_format.to_arrays(codes, params)
    kinds = number_format.array_types(values.shape)
    assert {part: (array.dtype.str, array.shape) for part, array in arrays.items()} == kinds
    assert all(kind.num_bytes == arrays[part].nbytes for part, kind in kinds.items())
    found_codes, found_params = number_format.from_arrays(arrays)
    np.testing.assert_array_equal(found_codes, codes)
    assert_same_params(found_params, params)


@pytest.mark.parametrize("name", PACKED)
def test_packed_rows_are_as_long_as_is_said(name: str, values: Values) -> None:
    number_format = as_packed(FORMATS[name])
    codes, params = number_format.encode(values)
    packed = number_format.pack(codes, params)
    assert packed.dtype == np.uint8
    assert packed.shape == (len(values), number_format.row_bytes(512))
    assert 8 * packed.size == number_format.bits_per_weight(values.shape) * values.size
    found_codes, found_params = number_format.unpack(packed)
    np.testing.assert_array_equal(found_codes, codes)
    assert_same_params(found_params, params)


def test_formats_without_bytes_of_their_own_say_so() -> None:
    with pytest.raises(QuantizationError, match="int8_channel does not define the bytes of a row"):
        as_packed(AffineFormat(num_bits=8))


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("int8_channel", *FLOATS)])
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    number_format = FORMATS[name]
    if number_format.columns_together:
        with pytest.raises(QuantizationError, match="not a multiple"):
            number_format.check((16, 500))
        with pytest.raises(QuantizationError, match="not a multiple"):
            number_format.fit(np.zeros((16, 500), np.float32))
    elif number_format.rows_together:
        with pytest.raises(QuantizationError, match="not a multiple"):
            number_format.check((15, 512))
    number_format.check((16, 512))


@pytest.mark.parametrize("name", FLOATS)
def test_floats_are_ggufs(name: str, random_weights: dict[str, Values]) -> None:
    values = np.concatenate([random_weights["heavier"], np.full((1, 1024), 1e-41, np.float32)])
    kind = gguf.GGMLQuantizationType[name]
    packed = FLOATS[name].pack(*FLOATS[name].encode(values))
    np.testing.assert_array_equal(packed, gguf.quantize(values, kind).view(np.uint8))
    decoded = FLOATS[name].dequantize(*FLOATS[name].unpack(packed))
    typed = packed.view({"F32": np.float32, "F16": np.float16, "BF16": np.uint8}[name])
    np.testing.assert_array_equal(decoded.view(np.uint32), gguf.dequantize(typed, kind).view(np.uint32))


def test_floats_beyond_float16_are_refused() -> None:
    values = np.full((1, 8), -7e4, np.float32)
    with pytest.raises(QuantizationError, match="70000"):
        F16.encode(values)
    assert np.isfinite(BF16.dequantize(*BF16.encode(values))).all()


@pytest.mark.parametrize("name", FORMATS)
def test_changes_of_parameters(name: str, values: Values) -> None:
    """None is no change; others move the stored values as their derivatives say."""
    number_format = FORMATS[name]
    codes, params = number_format.encode(values)
    shape = number_format.changes_shape(values.shape)
    if shape is None:
        assert number_format.is_float
        return
    stored = number_format.dequantize(codes, params)
    unchanged = number_format.changed(params, np.zeros(shape, np.float32))
    np.testing.assert_array_equal(number_format.dequantize(codes, unchanged), stored)
    random = np.random.default_rng(8)
    gradient = random.normal(size=values.shape).astype(np.float32)
    by_changes = number_format.by_changes(codes, params, gradient)
    assert by_changes.shape == shape
    # One row (or table) at a time, all of its parameters together; float16 shows these steps, and tables stay in order.
    step = 0.05 if number_format.codebook is not None else 0.003
    for place in (0, shape[0] - 1):
        changes = np.zeros(shape, np.float32)
        changes[place] = random.choice([-step, step], size=shape[1:])
        moved = number_format.dequantize(codes, number_format.changed(params, changes))
        found = float(((moved - stored) * gradient).sum(dtype=np.float64))
        wanted = float((changes * by_changes).sum(dtype=np.float64))
        size = float(np.sqrt(np.square((moved - stored) * gradient).sum(dtype=np.float64)))
        assert found == pytest.approx(wanted, abs=0.1 * size)
        assert size > 0
