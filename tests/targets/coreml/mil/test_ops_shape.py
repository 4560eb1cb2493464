"""What moves values without changing them, against numpy and torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from torch.nn import functional


def numbered(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(np.float32)


@settings(max_examples=5, deadline=None)
@given(shape=array_shapes(min_dims=2, max_dims=3, max_side=4), data=st.data())
def test_orders_and_axes(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    x, rank = numbered(*shape), len(shape)
    perm = data.draw(st.permutations(range(rank)))
    axis = data.draw(st.integers(-rank, rank - 1))
    new = data.draw(st.lists(st.integers(0, rank), min_size=1, max_size=2, unique=True))
    reps = data.draw(st.lists(st.integers(1, 3), min_size=rank, max_size=rank))

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "transpose": mb.transpose(x=x, perm=perm),
            "expand_dims": mb.expand_dims(x=x, axes=new),
            "squeeze": mb.squeeze(x=mb.expand_dims(x=x, axes=new), axes=new),
            "reverse": mb.reverse(x=x, axes=[axis]),
            "reverse_all": mb.reverse(x=x),
            "tile": mb.tile(x=x, reps=reps),
            "concat": mb.concat(values=[x, mb.mul(x=x, y=np.float32(-1)), x], axis=axis),
            "interleaved": mb.concat(values=[x, mb.mul(x=x, y=np.float32(-1))], axis=axis, interleave=True),
            "stack": mb.stack(values=[x, mb.mul(x=x, y=np.float32(-1))], axis=axis),
            "flatten": mb.flatten2d(x=x, axis=axis),
            "flat": mb.reshape(x=x, shape=[-1]),
        }

    found = programs.run(body, {"x": x})
    at = axis % rank
    expected = {
        "transpose": x.transpose(perm),
        "expand_dims": np.expand_dims(x, tuple(new)),
        "squeeze": x,
        "reverse": np.flip(x, axis),
        "reverse_all": np.flip(x),
        "tile": np.tile(x, reps),
        "concat": np.concatenate([x, -x, x], axis),
        "interleaved": np.stack([x, -x], at + 1).reshape(*x.shape[:at], 2 * x.shape[at], *x.shape[at + 1 :]),
        "stack": np.stack([x, -x], axis),
        "flatten": x.reshape(int(np.prod(shape[:at])), -1),
        "flat": x.reshape(-1),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_reshape_takes_sizes_over_and_from_the_right(programs: Any) -> None:
    x = numbered(2, 3, 4)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        turned = mb.transpose(x=x, perm=[2, 0, 1])
        return {
            "same_places": mb.reshape(x=x, shape=[0, -1, 0]),
            "from_the_right": mb.reshape(x=x, shape=[1, 0, -1, 0]),
            "like": mb.reshape_like(x=x, ref_tensors=(x, turned), begins=(2, 1), ends=(3, 0), end_masks=(False, True)),
        }

    found = programs.run(body, {"x": x})
    assert found["same_places"].shape == (2, 3, 4)
    assert found["from_the_right"].shape == (1, 2, 3, 4)
    assert found["like"].shape == (4, 2, 3)


def test_squeeze_without_axes_takes_every_axis_of_one(programs: Any) -> None:
    found = programs.run(lambda mb, x: {"y": mb.squeeze(x=x)}, {"x": numbered(1, 3, 1, 2)})["y"]
    assert found.shape == (3, 2)


def test_split_into_equal_and_into_given_parts(programs: Any) -> None:
    x = numbered(2, 6, 3)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        equal = mb.split(x=x, num_splits=3, axis=1)
        given_sizes = mb.split(x=x, split_sizes=[1, 5], axis=-2)
        return {f"e{i}": part for i, part in enumerate(equal)} | {f"g{i}": part for i, part in enumerate(given_sizes)}

    found = programs.run(body, {"x": x})
    for i, part in enumerate(np.split(x, 3, 1)):
        np.testing.assert_array_equal(found[f"e{i}"], part)
    np.testing.assert_array_equal(found["g0"], x[:, :1])
    np.testing.assert_array_equal(found["g1"], x[:, 1:])


@settings(max_examples=4, deadline=None)
@given(shape=array_shapes(min_dims=3, max_dims=4, min_side=3, max_side=5), data=st.data())
def test_padding(programs: Any, shape: tuple[int, ...], data: st.DataObject) -> None:
    pads = data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
    x = numbered(*shape)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {
            "with_value": mb.pad(x=x, pad=pads, mode="constant", constant_val=np.float32(-3)),
            "reflect": mb.pad(x=x, pad=pads, mode="reflect"),
            "replicate": mb.pad(x=x, pad=pads, mode="replicate"),
        }

    found = programs.run(body, {"x": x})
    pairs = [(0, 0)] * (len(shape) - 2) + [(pads[0], pads[1]), (pads[2], pads[3])]
    np.testing.assert_array_equal(found["with_value"], np.pad(x, pairs, constant_values=-3))
    np.testing.assert_array_equal(found["reflect"], np.pad(x, pairs, mode="reflect"))
    np.testing.assert_array_equal(found["replicate"], np.pad(x, pairs, mode="edge"))


def test_pixels_and_blocks(programs: Any) -> None:
    x = numbered(2, 8, 4, 6)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        deep = mb.space_to_depth(x=x, block_size=2)
        batched = mb.space_to_batch(x=x, block_shape=[2, 3], paddings=np.array([[0, 0], [1, 2]], np.int32))
        return {
            "shuffle": mb.pixel_shuffle(x=x, upscale_factor=2),
            "unshuffle": mb.pixel_unshuffle(x=x, downscale_factor=np.uint32(2)),
            "deep": deep,
            "space": mb.depth_to_space(x=deep, block_size=2),
            "batched": batched,
            "back": mb.batch_to_space(x=batched, block_shape=[2, 3], crops=np.array([[0, 0], [1, 2]], np.int32)),
            "crop": mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
        }

    found = programs.run(body, {"x": x})
    torches = torch.from_numpy(x)
    np.testing.assert_array_equal(found["shuffle"], functional.pixel_shuffle(torches, 2))
    np.testing.assert_array_equal(found["unshuffle"], functional.pixel_unshuffle(torches, 2))
    np.testing.assert_array_equal(found["deep"][:, :8], x[:, :, 0::2, 0::2])
    np.testing.assert_array_equal(found["deep"][:, 8:16], x[:, :, 0::2, 1::2])
    np.testing.assert_array_equal(found["space"], x)
    padded = np.pad(x, [(0, 0), (0, 0), (0, 0), (1, 2)])
    np.testing.assert_array_equal(found["batched"][:2], padded[:, :, 0::2, 0::3])
    np.testing.assert_array_equal(found["batched"][2:4], padded[:, :, 0::2, 1::3])
    np.testing.assert_array_equal(found["back"], x)
    np.testing.assert_array_equal(found["crop"], x[:, :, 1:-2, :-3])


def test_windows_slide_along_their_axis(programs: Any) -> None:
    x = numbered(2, 7, 3)
    found = programs.run(lambda mb, x: {"y": mb.sliding_windows(x=x, axis=1, size=3, stride=2)}, {"x": x})["y"]
    assert found.shape == (2, 3, 3, 3)
    for window in range(3):
        np.testing.assert_array_equal(found[:, window], x[:, 2 * window : 2 * window + 3])


def test_sequences_are_reversed_up_to_their_lengths(programs: Any) -> None:
    x = numbered(2, 5, 3)

    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {"y": mb.reverse_sequence(x=x, lengths=np.array([2, 4], np.int32), seq_axis=1, batch_axis=0)}

    found = programs.run(body, {"x": x})["y"]
    np.testing.assert_array_equal(found[0], x[0, [1, 0, 2, 3, 4]])
    np.testing.assert_array_equal(found[1], x[1, [3, 2, 1, 0, 4]])


@pytest.mark.parametrize("dtype", [np.int32, np.float16])
def test_values_of_other_types_move_alike(programs: Any, dtype: Any) -> None:
    x = np.arange(6).reshape(2, 3).astype(dtype)
    found = programs.run(lambda mb, x: {"y": mb.transpose(x=x, perm=[1, 0])}, {"x": x})["y"]
    np.testing.assert_array_equal(found, x.T)
