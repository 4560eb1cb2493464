"""Reductions, sorting and cumulative sums, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

REDUCTIONS = {
    "reduce_sum": np.sum,
    "reduce_mean": np.mean,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_prod": np.prod,
    "reduce_l1_norm": lambda x, **o: np.sum(np.abs(x), **o),
    "reduce_l2_norm": lambda x, **o: np.sqrt(np.sum(x * x, **o)),
    "reduce_sum_square": lambda x, **o: np.sum(x * x, **o),
    "reduce_log_sum_exp": lambda x, **o: np.log(np.sum(np.exp(x), **o)),
}


@settings(max_examples=5, deadline=None)
@given(shape=array_shapes(min_dims=2, max_dims=4, max_side=4), data=st.data())
def test_reductions_over_any_axes(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    axes = data.draw(st.lists(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1, unique=True))
    signed = [axis - data.draw(st.sampled_from([0, len(shape)])) for axis in axes]
    keep = data.draw(st.booleans())
    x = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=shape).astype(np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        found = {name: getattr(mb, name)(x=x, axes=signed, keep_dims=keep) for name in REDUCTIONS}
        positive = mb.abs(x=x)
        return {**found, "log_sum": mb.reduce_log_sum(x=positive, axes=signed, keep_dims=keep)}

    found = programs.run(body, {"x": x})
    wide = x.astype(np.float64)
    for name, function in REDUCTIONS.items():
        expected = function(wide, axis=tuple(axes), keepdims=keep)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5, err_msg=name)
    expected = np.log(np.abs(wide).sum(tuple(axes), keepdims=keep))
    np.testing.assert_allclose(found["log_sum"], expected, rtol=1e-5, atol=1e-5)


def test_reductions_without_axes_are_over_all(programs: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {name: getattr(mb, name)(x=x, keep_dims=True) for name in REDUCTIONS}

    found = programs.run(body, {"x": x})
    for name, function in REDUCTIONS.items():
        np.testing.assert_allclose(found[name], function(x, keepdims=True), rtol=1e-5, atol=1e-6, err_msg=name)


def test_reductions_of_integers_stay_integers(programs: Any) -> None:
    x = np.array([[3, -7, 5], [1, 1, 1]], np.int32)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {n: getattr(mb, n)(x=x, axes=[1]) for n in ("reduce_sum", "reduce_mean", "reduce_max", "reduce_prod")}

    found = programs.run(body, {"x": x})
    assert found["reduce_sum"].tolist() == [1, 3]
    assert found["reduce_mean"].tolist() == [0, 1]
    assert found["reduce_max"].tolist() == [5, 1]
    assert found["reduce_prod"].tolist() == [-105, 1]


@settings(max_examples=5, deadline=None)
@given(shape=array_shapes(min_dims=2, max_dims=4, max_side=5), data=st.data())
def test_places_and_order_along_any_axis(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    axis, keep = data.draw(st.integers(-len(shape), len(shape) - 1)), data.draw(st.booleans())
    ascending, k = data.draw(st.booleans()), data.draw(st.integers(1, shape[axis]))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random.permutation(np.prod(shape)).reshape(shape).astype(np.float32)  # no two are equal

    def body(mb: Any, x: Any) -> dict[str, Any]:
        values, indices = mb.topk(x=x, k=k, axis=axis, ascending=ascending)
        return {
            "argmax": mb.reduce_argmax(x=x, axis=axis, keep_dims=keep),
            "argmin": mb.reduce_argmin(x=x, axis=axis, keep_dims=keep),
            "argsort": mb.argsort(x=x, axis=axis, ascending=ascending),
            "values": values,
            "indices": indices,
        }

    found = programs.run(body, {"x": x})
    order = np.argsort(x if ascending else -x, axis=axis)
    first = np.take(order, range(k), axis=axis)
    np.testing.assert_array_equal(found["argmax"], np.argmax(x, axis, keepdims=keep))
    np.testing.assert_array_equal(found["argmin"], np.argmin(x, axis, keepdims=keep))
    np.testing.assert_array_equal(found["argsort"], order)
    np.testing.assert_array_equal(found["indices"], first)
    np.testing.assert_array_equal(found["values"], np.take_along_axis(x, first, axis))


@pytest.mark.parametrize("exclusive", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_cumulative_sums(programs: Any, exclusive: bool, reverse: bool) -> None:
    x = np.random.default_rng(0).integers(-9, 9, (3, 4, 2)).astype(np.float32)
    options = {"exclusive": exclusive, "reverse": reverse}
    found = programs.run(lambda mb, x: {"y": mb.cumsum(x=x, axis=1, **options)}, {"x": x})["y"]
    for place in range(4):
        summed = x[:, place + exclusive :] if reverse else x[:, : place + 1 - exclusive]
        np.testing.assert_array_equal(found[:, place], summed.sum(1))
