"""The searches, against exhaustive ones that need no cleverness: a dense grid in float64, one group at a time."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES, BlockShape

Values = NDArray[np.float32]

GROUPS = 24
CLOSE = 1.05
"""Ours tries some 30 starting points, the exhaustive search thousands; 5 % is what that may cost on average."""


def _levels(shape: BlockShape) -> NDArray[np.float64]:
    levels = shape.levels or range(shape.code_low, shape.code_high + 1)
    return np.array(levels, np.float64)


def _rounding_error(x: NDArray[np.float64], w: NDArray[np.float64], reachable: NDArray[np.float64]) -> float:
    return float((w * np.abs(x[:, None] - reachable).min(1) ** 2).sum())


def _best_symmetric(x: NDArray[np.float64], w: NDArray[np.float64], levels: NDArray[np.float64]) -> float:
    largest = np.abs(x).max()
    scales = largest / np.linspace(0.6, 1.6, 800) / np.abs(levels).max()
    return min(_rounding_error(x, w, sign * scale * levels) for scale in scales for sign in (1, -1))


def _best_affine(x: NDArray[np.float64], w: NDArray[np.float64], levels: NDArray[np.float64]) -> float:
    low, high = x.min(), x.max()
    span = high - low
    return min(
        _rounding_error(x, w, start + (end - start) * levels / levels[-1])
        for start in np.linspace(low - 0.1 * span, low + 0.2 * span, 60)
        for end in np.linspace(high - 0.2 * span, high + 0.1 * span, 60)
    )


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "IQ4_NL", "Q4_1"])
@pytest.mark.parametrize("important", [False, True])
def test_close_to_the_exhaustive_optimum(name: str, important: bool) -> None:
    shape, number_format = BLOCK_SHAPES[name], GGML_FORMATS[name]
    random = np.random.default_rng(2)
    values = random.standard_normal((1, 32 * GROUPS)).astype(np.float32)
    importance = random.lognormal(size=32 * GROUPS).astype(np.float32) if important else np.ones_like(values[0])
    params = number_format.fit(values, importance, weighting="importance")
    stored = number_format.dequantize(number_format.round(values, params), params)
    ours = float((importance * np.square(stored.astype(np.float64) - values)).sum())
    exhaustive = _best_affine if shape.has_offset else _best_symmetric
    best = sum(
        exhaustive(x.astype(np.float64), w.astype(np.float64), _levels(shape))
        for x, w in zip(values.reshape(GROUPS, 32), importance.reshape(GROUPS, 32), strict=True)
    )
    assert ours <= CLOSE * best


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_weights_that_a_format_holds_exactly_come_back_exactly(name: str) -> None:
    """Values already on a grid are a fixed point: encoding what was decoded loses next to nothing."""
    number_format = GGML_FORMATS[name]
    random = np.random.default_rng(4)
    values = random.standard_normal((8, 512)).astype(np.float32)
    once = number_format.dequantize(*number_format.encode(values))
    twice = number_format.dequantize(*number_format.encode(once))
    lost = np.square(twice - once).mean() / np.square(once - values).mean()
    assert lost <= 0.35


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_importance_moves_the_error_where_it_matters_less(name: str, random_weights: dict[str, Values]) -> None:
    values, number_format = random_weights["heavy"], GGML_FORMATS[name]
    importance = np.random.default_rng(5).lognormal(size=1024).astype(np.float32)
    plain = np.square(number_format.dequantize(*number_format.encode(values)) - values)
    weighted = np.square(number_format.dequantize(*number_format.encode(values, importance)) - values)
    assert (weighted * importance).sum() < (plain * importance).sum()


@pytest.mark.parametrize("name", [name for name, shape in BLOCK_SHAPES.items() if shape.has_subs])
def test_sharing_costs_little(name: str, random_weights: dict[str, Values]) -> None:
    """Six-bit integers times one float16, against a float32 scale for every group: a tenth more error at most."""
    values, number_format = random_weights["normal"], GGML_FORMATS[name]
    shape = number_format.shape
    error = np.square(number_format.dequantize(*number_format.encode(values)) - values).sum()
    groups = values.reshape(-1, shape.group_size).astype(np.float64)
    free = _free_error(groups[:200], shape) / groups[:200].size * values.size
    assert error <= 1.10 * free


def _free_error(groups: NDArray[np.float64], shape: BlockShape) -> float:
    """Extremes at the ends of the range, then alternate rounding and least squares, until nothing moves."""
    levels, total = _levels(shape), 0.0
    for x in groups:
        low = min(x.min(), 0.0) if shape.has_offset else 0.0
        extreme = x[np.abs(x).argmax()]
        scale = (x.max() - low) / levels[-1] if shape.has_offset else extreme / levels[0]
        for _ in range(20):
            level = levels[np.abs((x - low)[:, None] - scale * levels).argmin(1)]
            design = np.stack([level, np.ones_like(level)], 1) if shape.has_offset else level[:, None]
            solution = np.linalg.lstsq(design, x, rcond=None)[0]
            scale, low = solution[0], (solution[1] if shape.has_offset else 0.0)
        total += np.square(x - low - scale * level).sum()
    return total
