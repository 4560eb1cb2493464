"""States across calls, what a watcher sees, the two arithmetics, overflow, and control flow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwen3_export.targets.coreml.mil import Overflow, run

CACHE = {"cache": ((1, 6, 2), "fp16")}


def write_at(mb: Any, cache: Any, values: Any, at: Any) -> Any:
    """What every attention layer does: read, write a slice, write back, and read the result."""
    begin = mb.concat(values=[np.array([0], np.int32), at, np.array([0], np.int32)], axis=0)
    end = mb.concat(values=[np.array([1], np.int32), mb.add(x=at, y=np.int32(1)), np.array([2], np.int32)], axis=0)
    updated = mb.slice_update(x=mb.read_state(input=cache), update=values, begin=begin, end=end)
    return mb.coreml_update_state(state=cache, value=updated)


def one_step(mb: Any, values: Any, at: Any, cache: Any) -> dict[str, Any]:
    return {"y": write_at(mb, cache, values, at)}


def step(value: float, at: int) -> dict[str, np.ndarray]:
    return {"values": np.full((1, 1, 2), value, np.float16), "at": np.array([at], np.int32)}


def test_a_state_is_the_callers_and_is_kept_between_calls(programs: Any) -> None:
    package = programs.open(one_step, step(0, 0), states=CACHE)
    state, other = package.new_state(), package.new_state()
    for at in range(3):
        last = package.run(step(at + 1, at), state=state)["y"]
    copied = state.copy()
    package.run(step(9, 0), state=copied)
    assert state.numpy("cache")[0, :, 0].tolist() == last[0, :, 0].tolist() == [1, 2, 3, 0, 0, 0]
    assert copied.numpy("cache")[0, :, 0].tolist() == [9, 2, 3, 0, 0, 0]
    assert not other.numpy("cache").any()
    assert package.run(step(5, 5))["y"][0, :, 0].tolist() == [0, 0, 0, 0, 0, 5]  # a state of its own, forgotten
    assert not other.numpy("cache").any()


def test_outputs_do_not_change_when_the_state_does(programs: Any) -> None:
    package = programs.open(one_step, step(0, 0), states=CACHE)
    state = package.new_state()
    before = package.run(step(1, 0), state=state)["y"]
    package.run(step(7, 0), state=state)
    assert before[0, 0, 0] == 1


def test_the_cache_is_written_in_place(programs: Any) -> None:
    package = programs.open(one_step, step(0, 0), states=CACHE)
    state = package.new_state()
    memory = state.values["cache"].data_ptr()
    package.run(step(1, 0), state=state)
    assert state.values["cache"].data_ptr() == memory
    assert state.numpy("cache")[0, 0, 0] == 1


def test_what_was_read_before_a_write_stays_what_it_was(programs: Any) -> None:
    """Values that share the state's memory, directly or as views, forbid writing in place."""

    def body(mb: Any, values: Any, at: Any, cache: Any) -> dict[str, Any]:
        old = mb.read_state(input=cache)
        seen = mb.slice_by_index(x=old, begin=[0, 0, 0], end=[1, 2, 2])
        first = write_at(mb, cache, values, at)
        second = write_at(mb, cache, mb.mul(x=values, y=np.float16(2)), at)
        return {"old": old, "seen": seen, "first": first, "second": second}

    package = programs.open(body, step(0, 0), states=CACHE)
    state = package.new_state()
    found = package.run(step(3, 1), state=state)
    assert not found["old"].any()
    assert not found["seen"].any()
    assert found["first"][0, 1, 0] == 3
    assert found["second"][0, 1, 0] == state.numpy("cache")[0, 1, 0] == 6


def test_a_constant_written_into_a_state_does_not_become_it(programs: Any) -> None:
    def body(mb: Any, values: Any, at: Any, cache: Any) -> dict[str, Any]:
        mb.coreml_update_state(state=cache, value=mb.const(val=np.ones((1, 6, 2), np.float16)))
        return {"y": write_at(mb, cache, values, at)}

    package = programs.open(body, step(0, 0), states=CACHE)
    state = package.new_state()
    for value in (5, 7):
        found = package.run(step(value, value - 3), state=state)["y"]
        assert found.sum() == 10 + 2 * value


def test_exact_keeps_what_fp16_rounds_and_fp32_stays_fp32(programs: Any) -> None:
    def body(mb: Any, x: Any) -> dict[str, Any]:
        third = mb.real_div(x=x, y=np.float32(3))
        half = mb.real_div(x=mb.cast(x=x, dtype="fp16"), y=np.float16(3))
        return {"single": third, "half": half, "back": mb.cast(x=half, dtype="fp32")}

    x = np.array([1.0, 100.0], np.float32)
    package = programs.open(body, {"x": x})
    exact, rounded = package.run({"x": x}), package.run({"x": x}, mode="fp16")
    for name in ("single", "half", "back"):
        np.testing.assert_array_equal(exact[name], x / np.float32(3))
        assert exact[name].dtype == np.float32
    np.testing.assert_array_equal(rounded["single"], x / np.float32(3))
    assert rounded["half"].dtype == np.float16
    np.testing.assert_array_equal(rounded["half"], (x / 3).astype(np.float16))
    np.testing.assert_array_equal(rounded["back"], rounded["half"].astype(np.float32))


def test_a_mode_is_exact_or_fp16(programs: Any) -> None:
    package = programs.open(one_step, step(0, 0), states=CACHE)
    with pytest.raises(ValueError, match="neither 'exact' nor 'fp16'"):
        package.run(step(0, 0), mode="fp32")


def test_states_are_rounded_with_everything_else(programs: Any) -> None:
    def body(mb: Any, values: Any, at: Any, cache: Any) -> dict[str, Any]:
        return {"y": write_at(mb, cache, mb.real_div(x=values, y=np.float16(3)), at)}

    package = programs.open(body, step(0, 0), states=CACHE)
    exact, rounded = package.new_state(), package.new_state()
    package.run(step(1, 0), state=exact)
    package.run(step(1, 0), state=rounded, mode="fp16")
    assert exact.numpy("cache")[0, 0, 0] == np.float32(1) / np.float32(3)
    assert rounded.numpy("cache")[0, 0, 0] == np.float16(1 / 3)


def squares(mb: Any, x: Any) -> dict[str, Any]:
    """An RMSNorm that squares in fp16 before it takes the mean."""
    squared = mb.square(x=x, name="squared")
    mean = mb.reduce_mean(x=squared, axes=[-1], keep_dims=True, name="mean")
    return {"y": mb.mul(x=x, y=mb.rsqrt(x=mean, epsilon=np.float16(1e-3), name="scale"))}


def test_the_first_overflow_is_named(programs: Any) -> None:
    package = programs.open(squares, {"x": np.ones((1, 4), np.float16)})
    calm, loud = np.full((1, 4), 255, np.float16), np.full((1, 4), 257, np.float16)
    assert package.run({"x": calm}, mode="fp16").overflow is None
    found = package.run({"x": loud}, mode="fp16")
    assert found.overflow == Overflow(op="square", output="squared", kind="inf")
    exact = package.run({"x": loud})
    assert exact.overflow is None
    np.testing.assert_allclose(exact["y"], 1, rtol=1e-6)


def attention(mb: Any, query: Any, key: Any, mask: Any) -> dict[str, Any]:
    attended = mb.scaled_dot_product_attention(query=query, key=key, value=key, attn_mask=mask, name="attended")
    return {"y": attended}


LOWEST = float(np.finfo(np.float16).min)


@pytest.mark.parametrize(
    ("hidden", "query", "broken"),
    [(-1e4, -6, False), (LOWEST, 6, False), (LOWEST, -6, True), (-np.inf, 6, True)],
)
def test_a_row_that_sees_nothing_becomes_nan_under_too_low_a_mask(
    programs: Any, hidden: float, query: float, broken: bool
) -> None:
    """fp16's lowest number is no better than infinity: a score of -72 takes it over the edge."""
    inputs = {
        "query": np.full((1, 1, 1, 4), query, np.float16),
        "key": np.full((1, 1, 2, 4), 6, np.float16),
        "mask": np.full((1, 1, 1, 2), hidden, np.float16),
    }
    found = programs.open(attention, inputs).run(inputs, mode="fp16")
    expected = Overflow(op="scaled_dot_product_attention", output="attended", kind="nan")
    assert found.overflow == (expected if broken else None)
    assert np.isnan(found["y"]).any() == broken


def test_masks_of_minus_infinity_are_meant(programs: Any) -> None:
    def body(mb: Any, x: Any) -> dict[str, Any]:
        mask = np.array([[0, -np.inf], [0, 0]], np.float16)
        shown = mb.select(cond=mb.greater(x=x, y=np.float16(5)), a=np.float16(-np.inf), b=x)
        return {"y": mb.softmax(x=mb.add(x=shown, y=mask), axis=-1)}

    x = np.array([[1, 2], [3, 9]], np.float16)
    found = programs.open(body, {"x": x}).run({"x": x}, mode="fp16")
    assert found.overflow is None
    assert found["y"].tolist() == [[1, 0], [1, 0]]


def test_a_row_without_anything_finite_is_reported_as_nan(programs: Any) -> None:
    def body(mb: Any, x: Any) -> dict[str, Any]:
        return {"y": mb.softmax(x=mb.add(x=x, y=np.full((1, 2), -np.inf, np.float16)), axis=-1, name="weights")}

    x = np.ones((1, 2), np.float16)
    found = programs.open(body, {"x": x}).run({"x": x}, mode="fp16")
    assert found.overflow == Overflow(op="softmax", output="weights", kind="nan")


def test_a_mask_of_fp32s_lowest_number_overflows_where_it_is_cast(programs: Any) -> None:
    def body(mb: Any, x: Any) -> dict[str, Any]:
        lowest = mb.fill(shape=mb.shape(x=x), value=np.finfo(np.float32).min)
        hidden = mb.select(cond=mb.greater(x=x, y=np.float32(0)), a=x, b=lowest)
        return {"y": mb.cast(x=hidden, dtype="fp16", name="mask")}

    x = np.array([1.0, -1.0], np.float32)
    found = programs.open(body, {"x": x}).run({"x": x}, mode="fp16")
    assert found.overflow == Overflow(op="cast", output="mask", kind="inf")


def test_a_watcher_sees_every_result_by_name_and_in_order(programs: Any) -> None:
    seen = []
    x = np.full((1, 4), 2, np.float16)
    path = programs.save(squares, {"x": x})
    run(path, {"x": x}, watch=lambda kind, name, value: seen.append((kind, name, value.flatten()[0].item())))
    assert seen[:2] == [("square", "squared", 4.0), ("reduce_mean", "mean", 4.0)]
    assert [kind for kind, _, _ in seen] == ["square", "reduce_mean", "rsqrt", "mul", "identity"]


def test_branches_and_loops(programs: Any) -> None:
    def body(mb: Any, x: Any, count: Any) -> dict[str, Any]:
        times = mb.squeeze(x=count, axes=[0])
        doubled, left = mb.while_loop(
            _cond=lambda _, left: mb.greater(x=left, y=np.int32(0)),
            _body=lambda value, left: (mb.mul(x=value, y=np.float32(2)), mb.sub(x=left, y=np.int32(1))),
            loop_vars=(x, times),
        )
        chosen = mb.cond(
            pred=mb.greater(x=times, y=np.int32(2)),
            _true_fn=lambda: mb.add(x=doubled, y=x),
            _false_fn=lambda: mb.sub(x=doubled, y=x),
        )
        return {"y": chosen, "left": mb.expand_dims(x=left, axes=[0])}

    inputs = {"x": np.array([1.0, 3.0], np.float32), "count": np.array([3], np.int32)}
    package = programs.open(body, inputs)
    found = package.run(inputs)
    assert found["y"].tolist() == [9, 27]
    assert found["left"].tolist() == [0]
    assert package.run({**inputs, "count": np.array([1], np.int32)})["y"].tolist() == [1, 3]
