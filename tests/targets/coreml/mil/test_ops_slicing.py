"""Slices and writes into them, against numpy's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from qwen3_export.errors import CheckpointError


@st.composite
def slices(draw: st.DrawFn, size: int) -> tuple[int, int, int, bool, bool, bool]:
    """begin, end, stride, and the three masks; never empty."""
    stride = draw(st.sampled_from([1, 1, 2, -1, -2]))
    low = draw(st.integers(0, size - 1))
    high = draw(st.integers(low, size - 1))
    first, last = (low, high + 1) if stride > 0 else (high, low - 1)
    to_end = draw(st.booleans()) or last < 0  # numpy has no number for "down to the first"
    first -= draw(st.sampled_from([0, size]))
    last -= size if 0 <= last < size and draw(st.booleans()) else 0
    return first, last, stride, draw(st.booleans()), to_end, draw(st.sampled_from([False, False, True]))


def numpys(choice: tuple[int, int, int, bool, bool, bool]) -> slice | int:
    first, last, stride, from_start, to_end, squeeze = choice
    if squeeze:
        return 0 if from_start else first
    return slice(None if from_start else first, None if to_end else last, stride)


def arguments(choices: list[tuple[int, int, int, bool, bool, bool]]) -> dict[str, Any]:
    names = ("begin", "end", "stride", "begin_mask", "end_mask", "squeeze_mask")
    return {name: [choice[i] for choice in choices] for i, name in enumerate(names)}


@settings(max_examples=12, deadline=None)
@given(shape=array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=6), data=st.data())
def test_slices_are_numpys(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    choices = [data.draw(slices(size)) for size in shape]
    x = np.arange(np.prod(shape)).reshape(shape).astype(np.float32)
    expected = x[tuple(map(numpys, choices))]
    if expected.ndim == 0:
        choices[0] = (*choices[0][:5], False)
        expected = x[tuple(map(numpys, choices))]
    if expected.size == 0:
        return
    found = programs.run(lambda mb, x: {"y": mb.slice_by_index(x=x, **arguments(choices))}, {"x": x})["y"]
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=8, deadline=None)
@given(shape=array_shapes(min_dims=1, max_dims=3, min_side=2, max_side=6), data=st.data())
def test_updates_are_numpys_assignments(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    choices = [(*data.draw(slices(size))[:5], False) for size in shape]
    x = np.arange(np.prod(shape)).reshape(shape).astype(np.float32)
    expected = x.copy()
    update = -1 - np.arange(x[tuple(map(numpys, choices))].size, dtype=np.float32)
    update = update.reshape(x[tuple(map(numpys, choices))].shape)
    if update.size == 0:
        return
    expected[tuple(map(numpys, choices))] = update
    given_inputs = {"x": x, "update": update}

    def body(mb: Any, x: Any, update: Any) -> dict[str, Any]:
        return {"y": mb.slice_update(x=x, update=update, **arguments(choices)), "before": x}

    found = programs.run(body, given_inputs)
    np.testing.assert_array_equal(found["y"], expected)
    np.testing.assert_array_equal(found["before"], x)


def test_slices_by_size_take_the_rest_for_minus_one(programs: Any) -> None:
    x = np.arange(60).reshape(3, 4, 5).astype(np.float32)
    found = programs.run(lambda mb, x: {"y": mb.slice_by_size(x=x, begin=[1, 0, 2], size=[-1, 2, -1])}, {"x": x})["y"]
    np.testing.assert_array_equal(found, x[1:, :2, 2:])


def test_places_may_be_computed(programs: Any) -> None:
    """A cache is written at a place that is an input's shape."""
    x, tokens = np.zeros((2, 6), np.float32), np.ones((2, 3), np.float32)

    def body(mb: Any, x: Any, tokens: Any) -> dict[str, Any]:
        count = mb.slice_by_index(x=mb.shape(x=tokens), begin=[1], end=[2])
        end = mb.concat(values=[np.array([2], np.int32), mb.add(x=count, y=np.int32(1))], axis=0)
        return {"y": mb.slice_update(x=x, update=tokens, begin=[0, 1], end=end)}

    found = programs.run(body, {"x": x, "tokens": tokens})["y"]
    np.testing.assert_array_equal(found, [[0, 1, 1, 1, 0, 0]] * 2)


def test_an_update_that_leaves_its_tensor_is_refused(programs: Any) -> None:
    inputs = {"x": np.zeros((2, 6), np.float32), "tokens": np.ones((2, 3), np.float32), "at": np.array([5], np.int32)}

    def body(mb: Any, x: Any, tokens: Any, at: Any) -> dict[str, Any]:
        begin = mb.concat(values=[np.array([0], np.int32), at], axis=0)
        end = mb.concat(values=[np.array([2], np.int32), mb.add(x=at, y=np.int32(3))], axis=0)
        return {"y": mb.slice_update(x=x, update=tokens, begin=begin, end=end)}

    package = programs.open(body, inputs)
    assert package.run({**inputs, "at": np.array([3], np.int32)})["y"].sum() == 6
    with pytest.raises(CheckpointError, match=r"slice_update .* does not fill a slice of shape \[2, 1\]"):
        package.run(inputs)
