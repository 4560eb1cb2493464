"""What is made from shapes and places, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes


@settings(max_examples=4, deadline=None)
@given(shape=array_shapes(min_dims=2, max_dims=4, max_side=5), lower=st.integers(-1, 3), upper=st.integers(-1, 3))
def test_bands_shapes_and_fills(programs: Any, shape: tuple[int, ...], lower: int, upper: int) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "band": mb.band_part(x=x, lower=lower, upper=upper),
            "causal": mb.band_part(x=x, lower=-1, upper=0),
            "sizes": mb.shape(x=x),
            "filled": mb.fill(shape=mb.shape(x=x), value=np.float32(2.5)),
            "like": mb.fill_like(ref_tensor=x, value=np.int32(7)),
            "where": mb.non_zero(x=mb.band_part(x=x, lower=0, upper=0)),
        }

    found = programs.run(body, {"x": x})
    below = np.subtract.outer(np.arange(shape[-2]), np.arange(shape[-1]))
    kept = ((lower < 0) | (below <= lower)) & ((upper < 0) | (-below <= upper))
    np.testing.assert_array_equal(found["band"], x * kept)
    np.testing.assert_array_equal(found["causal"], np.tril(x))
    assert found["sizes"].tolist() == list(shape)
    np.testing.assert_array_equal(found["filled"], np.full(shape, 2.5))
    np.testing.assert_array_equal(found["like"], np.full(shape, 7, np.int32))
    np.testing.assert_array_equal(found["where"], np.argwhere(x * (below == 0)))


@settings(max_examples=4, deadline=None)
@given(start=st.integers(-5, 5), count=st.integers(1, 6), step=st.sampled_from([-2, 1, 3]))
def test_ranges_end_before_their_end(programs: Any, start: int, count: int, step: int) -> None:
    inputs = {"end": np.array([start + count * step], np.int32)}

    def body(mb: Any, end: Any) -> dict[str, Any]:
        last = mb.squeeze(x=end, axes=[0])
        floats = {"start": np.float32(start), "step": np.float32(step), "end": mb.cast(x=last, dtype="fp32")}
        return {
            "integers": mb.range_1d(start=np.int32(start), end=last, step=np.int32(step)),
            "floats": mb.range_1d(**floats),
        }

    found = programs.run(body, inputs)
    expected = np.arange(start, start + count * step, step)
    np.testing.assert_array_equal(found["integers"], expected)
    np.testing.assert_array_equal(found["floats"], expected.astype(np.float32))


@settings(max_examples=4, deadline=None)
@given(axis=st.integers(-3, 2), seed=st.integers(0, 99))
def test_one_hot_vectors_lie_along_any_axis(programs: Any, axis: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, 5, (2, 3)).astype(np.int32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        hot = {"on_value": np.float32(2), "off_value": np.float32(-1)}
        return {
            "y": mb.one_hot(indices=x, one_hot_vector_size=np.int32(5), axis=axis, **hot),
            "plain": mb.one_hot(indices=x, one_hot_vector_size=np.int32(5)),
        }

    found = programs.run(body, {"x": indices})
    np.testing.assert_array_equal(found["y"], np.moveaxis(np.eye(5)[indices] * 3 - 1, -1, axis))
    np.testing.assert_array_equal(found["plain"], np.eye(5)[indices])


def test_quantizing_clips_and_dequantizing_undoes_it(programs: Any) -> None:
    x = np.random.default_rng(0).normal(scale=40, size=(3, 4)).astype(np.float32)
    scale, zero_point = np.array([0.5, 1.0, 0.25], np.float32), np.array([1, -3, 0], np.int8)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        codes = mb.quantize(input=x, zero_point=zero_point, scale=scale, output_dtype="int8", axis=0)
        return {"codes": codes, "values": mb.dequantize(input=codes, zero_point=zero_point, scale=scale, axis=0)}

    found = programs.run(body, {"x": x})
    zero, step = zero_point[:, None].astype(np.float32), scale[:, None]
    codes = np.clip(np.round(x / step) + zero, -128, 127)
    np.testing.assert_array_equal(found["codes"], codes)
    np.testing.assert_array_equal(found["values"], step * (codes - zero))
