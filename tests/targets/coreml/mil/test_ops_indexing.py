"""Gathering and scattering, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from qwen3_export.errors import CheckpointError

MODES = {
    "update": lambda _, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": max,
    "min": min,
}


@settings(max_examples=5, deadline=None)
@given(shape=array_shapes(min_dims=2, max_dims=4, min_side=2, max_side=4), data=st.data())
def test_gathering_along_any_axis(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    x = random.normal(size=shape).astype(np.float32)
    chosen = random.integers(0, shape[axis], data.draw(array_shapes(max_dims=2, max_side=3))).astype(np.int32)
    longer = tuple(5 if i == axis % len(shape) else size for i, size in enumerate(shape))
    along = random.integers(0, shape[axis], longer).astype(np.int32)
    inputs = {"x": x, "chosen": chosen, "along": along}

    def body(mb: Any, x: Any, chosen: Any, along: Any) -> dict[str, Any]:
        return {
            "gather": mb.gather(x=x, indices=chosen, axis=axis),
            "one": mb.gather(x=x, indices=np.int32(1), axis=axis),
            "each": mb.gather_along_axis(x=x, indices=along, axis=axis),
        }

    found = programs.run(body, inputs)
    np.testing.assert_array_equal(found["gather"], np.take(x, chosen, axis))
    np.testing.assert_array_equal(found["one"], np.take(x, 1, axis))
    np.testing.assert_array_equal(found["each"], np.take_along_axis(x, along, axis))


@settings(max_examples=4, deadline=None)
@given(axis=st.sampled_from([1, 2, -1]), batch=st.sampled_from([0, 1]), depth=st.integers(1, 2), seed=st.integers(0, 9))
def test_batches_gather_for_themselves(programs: Any, axis: int, batch: int, depth: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = random.normal(size=(3, 4, 2)).astype(np.float32)
    chosen = random.integers(0, 2, (3, 2)).astype(np.int32)
    places = random.integers(0, 2, (3, 2, depth)).astype(np.int32)

    def body(mb: Any, x: Any, chosen: Any, places: Any) -> dict[str, Any]:
        return {
            "gather": mb.gather(x=x, indices=chosen, axis=axis, batch_dims=batch),
            "nd": mb.gather_nd(x=x, indices=places, batch_dims=batch),
        }

    found = programs.run(body, {"x": x, "chosen": chosen, "places": places})
    if batch:
        gathered = np.stack([np.take(x[b], chosen[b], (axis % 3) - 1) for b in range(3)])
        nd = np.stack([x[b][tuple(np.moveaxis(places[b], -1, 0))] for b in range(3)])
    else:
        gathered, nd = np.take(x, chosen, axis), x[tuple(np.moveaxis(places, -1, 0))]
    np.testing.assert_array_equal(found["gather"], gathered)
    np.testing.assert_array_equal(found["nd"], nd)


@pytest.mark.parametrize("mode", sorted(MODES))
@settings(max_examples=2, deadline=None)
@given(axis=st.integers(-3, 2), seed=st.integers(0, 99))
def test_scattering_in_every_mode(programs: Any, mode: str, axis: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    shape, at = (3, 4, 2), axis % 3
    x = random.uniform(0.5, 2, shape).astype(np.float32)
    # Twice the same place, except where the order would matter.
    places = random.permutation(shape[at])[:2] if mode == "update" else np.array([1, 1, 0])
    spread_shape = tuple(len(places) if i == at else size for i, size in enumerate(shape))
    updates = random.uniform(0.5, 2, spread_shape).astype(np.float32)
    along = np.broadcast_to(places.reshape([-1 if i == at else 1 for i in range(3)]), spread_shape)
    pairs = np.array([[0, 1], [2, 3], [2, 0]])
    rows = random.uniform(0.5, 2, (3, 2)).astype(np.float32)
    indices = {"places": places.astype(np.int32), "along": along.astype(np.int32), "pairs": pairs.astype(np.int32)}

    def body(mb: Any, x: Any, updates: Any, rows: Any, places: Any, along: Any, pairs: Any) -> dict[str, Any]:
        return {
            "scatter": mb.scatter(data=x, indices=places, updates=updates, axis=axis, mode=mode),
            "each": mb.scatter_along_axis(data=x, indices=along, updates=updates, axis=axis, mode=mode),
            "nd": mb.scatter_nd(data=x, indices=pairs, updates=rows, mode=mode),
        }

    found = programs.run(body, {"x": x, "updates": updates, "rows": rows, **indices})
    expected = x.astype(np.float64)
    for place in np.ndindex(spread_shape):
        to = (*place[:at], int(places[place[at]]), *place[at + 1 :])
        expected[to] = MODES[mode](expected[to], updates[place])
    np.testing.assert_allclose(found["scatter"], expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["each"], expected, rtol=1e-6, atol=1e-6)
    expected = x.astype(np.float64)
    for pair, row in zip(pairs, rows, strict=True):
        expected[tuple(pair)] = [MODES[mode](old, new) for old, new in zip(expected[tuple(pair)], row, strict=True)]
    np.testing.assert_allclose(found["nd"], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["gather", "gather_along_axis", "gather_nd"])
def test_negative_indices_count_from_the_end_only_before_ios_17(programs: Any, kind: str) -> None:
    x = np.arange(12).reshape(4, 3).astype(np.float32)
    indices = {"gather": [-1, 0], "gather_along_axis": [[-1, 0, -2]], "gather_nd": [[-1, 2]]}[kind]
    inputs = {"x": x, "at": np.array(indices, np.int32)}

    def body(mb: Any, x: Any, at: Any) -> dict[str, Any]:
        return {"y": getattr(mb, kind)(x=x, indices=at)}

    found = programs.run(body, inputs, target="iOS16")["y"]
    expected = {"gather": x[[-1, 0]], "gather_along_axis": [[9, 1, 8]], "gather_nd": [11]}[kind]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(CheckpointError, match=rf"{kind} .* leave an axis of 4 elements"):
        programs.run(body, inputs)


def test_indices_beyond_the_end_are_refused(programs: Any) -> None:
    inputs = {"x": np.zeros((4, 3), np.float32), "at": np.array([4], np.int32)}
    with pytest.raises(CheckpointError, match="leave an axis of 4 elements"):
        programs.run(lambda mb, x, at: {"y": mb.gather(x=x, indices=at)}, inputs)
