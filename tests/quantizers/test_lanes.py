"""Vectors of eight floats, against numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.compile import kernel
from qwen3_export.quantizers.ggml.search import nearest_half, reciprocal
from qwen3_export.quantizers.lanes import (
    clamp,
    fma,
    lane,
    largest_lane,
    load,
    load_apart,
    magnitude,
    maximum,
    minimum,
    rint,
    splat,
    square_root,
    store,
    sum_of_lanes,
    where,
)

Values = NDArray[np.float32]


@kernel
def _arithmetic(out: Values, a: Values, b: Values) -> None:
    x, y = load(a, 0), load(b, 0)
    store(out, 0, x + y)
    store(out, 8, x - y)
    store(out, 16, x * y)
    store(out, 24, x / y)
    store(out, 32, -x)
    store(out, 40, rint(x))
    store(out, 48, magnitude(x))
    store(out, 56, square_root(magnitude(x)))


@kernel
def _choices(out: Values, a: Values, b: Values) -> None:
    x, y = load(a, 0), load(b, 0)
    store(out, 0, minimum(x, y))
    store(out, 8, maximum(x, y))
    store(out, 16, clamp(x, splat(-1.0), splat(1.0)))
    store(out, 24, where((x < y) & (x > splat(0.0)), x, y))
    store(out, 32, where((x <= y) | (x >= splat(2.0)), x, y))
    store(out, 40, load_apart(a, 1, 3))
    store(out, 48, fma(x, y, x))
    out[56], out[57], out[58] = lane(x, 3), sum_of_lanes(x), largest_lane(x)


@kernel
def _helpers(out: Values, a: Values) -> None:
    store(out, 0, nearest_half(load(a, 0)))
    store(out, 8, reciprocal(load(a, 0)))


def _operands() -> tuple[Values, Values]:
    random = np.random.default_rng(0)
    a, b = (random.standard_normal(32).astype(np.float32) * 3 for _ in range(2))
    a[:4] = [0.5, 1.5, 2.5, -0.5]  # ties go to even
    return a, b


def test_arithmetic() -> None:
    (a, b), out = _operands(), np.zeros(64, np.float32)
    _arithmetic(out, a, b)
    x, y = a[:8], b[:8]
    expected = [x + y, x - y, x * y, x / y, -x, np.rint(x), np.abs(x), np.sqrt(np.abs(x))]
    np.testing.assert_array_equal(out, np.concatenate(expected))


def test_choices() -> None:
    (a, b), out = _operands(), np.zeros(64, np.float32)
    _choices(out, a, b)
    x, y = a[:8], b[:8]
    expected = [
        np.minimum(x, y),
        np.maximum(x, y),
        np.clip(x, -1, 1),
        np.where((x < y) & (x > 0), x, y),
        np.where((x <= y) | (x >= 2), x, y),
        a[1:25:3],
    ]
    np.testing.assert_array_equal(out[:48], np.concatenate(expected))
    np.testing.assert_allclose(out[48:56], x * y + x, rtol=1e-5)
    assert out[56] == x[3]
    np.testing.assert_allclose(out[57], x.sum(), rtol=1e-5)
    assert out[58] == x.max()


def test_halves_are_numpys_nearest() -> None:
    random = np.random.default_rng(1)
    exponents = random.uniform(-30, 15.9, 4096)
    numbers = (random.choice([-1, 1], 4096) * 2.0**exponents).astype(np.float32)
    numbers[:16] = [0, -0.0, 65504, 70000, -1e9, 2**-14, 2**-24, 2**-25, 1e-8, 6e-5, 6.1e-5, 1, -1, 0.1, 3, 1e-40]
    ours, scratch = np.empty_like(numbers), np.empty(16, np.float32)
    for first in range(0, numbers.size, 8):
        _helpers(scratch, np.ascontiguousarray(numbers[first : first + 8]))
        ours[first : first + 8] = scratch[:8]
    np.testing.assert_array_equal(ours.astype(np.float16).astype(np.float32), ours)
    held = np.clip(numbers, -65504, 65504)
    # Ties may go either way.
    np.testing.assert_array_equal(np.abs(ours - held), np.abs(held.astype(np.float16).astype(np.float32) - held))


def test_reciprocal_of_zero_is_zero() -> None:
    out = np.empty(16, np.float32)
    _helpers(out, np.array([0, -0.0, 2, -4, 0.5, 1, 8, 0], np.float32))
    np.testing.assert_array_equal(out[8:], np.array([0, 0, 0.5, -0.25, 2, 1, 0.125, 0], np.float32))
