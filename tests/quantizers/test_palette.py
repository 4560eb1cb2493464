"""Palettes: clustering against the exhaustive optimum and against Lloyd's iteration, and what callers rely on."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.palette import PaletteFormat, PaletteParams
from qwen3_export.quantizers.palette.kmeans import cluster, nearest_entries

Values = NDArray[np.float32]


def some_values(rows: int, columns: int, *, seed: int = 0) -> Values:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.03).astype(np.float32)


def some_importance(columns: int, *, seed: int = 1) -> Values:
    return np.exp(np.random.default_rng(seed).normal(0, 1.5, columns)).astype(np.float32)


def error_of(table: Values, values: Values, weights: Values) -> float:
    distances = abs(values[:, None].astype(np.float64) - table)
    return float((weights * distances.min(axis=1) ** 2).sum())


def exhaustive(values: Values, weights: Values, entries: int) -> float:
    """The least error over all ways to cut sorted numbers into intervals."""
    best = np.inf
    for cuts in combinations(range(1, values.size), entries - 1):
        parts = list(zip((0, *cuts), (*cuts, values.size), strict=True))
        means = [np.average(values[i:j], weights=weights[i:j]) for i, j in parts]
        total = sum((weights[i:j] * (values[i:j] - mean) ** 2).sum() for (i, j), mean in zip(parts, means, strict=True))
        best = min(best, float(total))
    return best


def lloyd(values: Values, weights: Values, entries: int, *, seed: int) -> float:
    """k-means as most do it: a random start, then a hundred rounds."""
    random = np.random.default_rng(seed)
    table = np.sort(random.choice(values, entries, replace=False)).astype(np.float64)
    for _ in range(100):
        nearest = np.searchsorted((table[1:] + table[:-1]) / 2, values)
        mass = np.bincount(nearest, weights, entries)
        means = np.bincount(nearest, weights * values, entries) / np.maximum(mass, 1e-30)
        table = np.where(mass > 0, means, table)
    return error_of(table, values, weights)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(4, 10), entries=st.sampled_from([2, 3, 4]), seed=st.integers(0, 10_000))
def test_small_tables_are_the_optimum(count: int, entries: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    values = np.sort(random.normal(size=count)).astype(np.float32)
    weights = random.exponential(size=count).astype(np.float32)
    found = error_of(cluster(values, weights, entries), values, weights)
    best = exhaustive(values.astype(np.float64), weights.astype(np.float64), entries)
    assert found <= best * (1 + 1e-4) + 1e-9


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_never_behind_the_best_of_many_random_starts(bits: int) -> None:
    values = np.sort(some_values(4, 1024).reshape(-1))
    weights = np.ascontiguousarray(np.random.default_rng(2).exponential(size=values.size).astype(np.float32))
    found = error_of(cluster(values, weights, 1 << bits), values, weights)
    assert found <= 1.002 * min(lloyd(values, weights, 1 << bits, seed=seed) for seed in range(5))


def test_importance_moves_the_table() -> None:
    values, importance = some_values(8, 256), some_importance(256)
    fmt = PaletteFormat(num_bits=3, rows_per_table=8)

    def error(params: PaletteParams) -> float:
        stored = fmt.dequantize(fmt.round(values, params), params)
        return float((importance * (stored - values) ** 2).sum())

    assert error(fmt.fit(values, importance)) < 0.97 * error(fmt.fit(values))
    spread = np.tile(importance, (8, 1))
    np.testing.assert_array_equal(fmt.fit(values, spread).table_LE, fmt.fit(values, importance).table_LE)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("rows_per_table", [1, 4, None])
def test_codes_name_the_nearest_entry(bits: int, rows_per_table: int | None) -> None:
    fmt, values = PaletteFormat(num_bits=bits, rows_per_table=rows_per_table), some_values(8, 96)
    codes, params = fmt.encode(values)
    again, _ = fmt.encode(values)
    np.testing.assert_array_equal(codes, again)
    stored = fmt.dequantize(codes, params)
    size = rows_per_table or 8
    for row in range(8):
        table = params.table_LE[row // size]
        assert (np.diff(table) >= 0).all()
        np.testing.assert_array_equal(table.astype(np.float16), table)
        nearest = abs(values[row][:, None] - table).min(axis=1)
        np.testing.assert_allclose(abs(values[row] - stored[row]), nearest, rtol=1e-4, atol=1e-9)
    assert codes.max() < 1 << bits
    one_column = fmt.round(values[:, 5:6], params)
    np.testing.assert_array_equal(one_column, codes[:, 5:6])


def test_more_entries_than_values_stores_them_exactly() -> None:
    values = np.array([[0.5, -1.0, 0.5, 2.0]], np.float32)
    fmt = PaletteFormat(num_bits=4, rows_per_table=1)
    np.testing.assert_array_equal(fmt.dequantize(*fmt.encode(values)), values)
    for weights in (np.zeros(4, np.float32), np.array([0, 1, 0, 0], np.float32)):
        assert np.isfinite(fmt.fit(values, weights).table_LE).all()
    zeros = np.zeros((2, 64), np.float32)
    assert not fmt.dequantize(*fmt.encode(zeros)).any()


def test_nearest_entries_of_a_repeated_table_are_in_range() -> None:
    table = np.zeros((1, 8), np.float32)
    codes = np.empty((1, 3), np.uint8)
    nearest_entries(codes, np.array([[-1, 0, 1]], np.float32), table)
    assert codes.max() < 8


def test_finer_tables_and_more_tables_err_less() -> None:
    values = some_values(32, 256)
    errors = {}
    for bits in (2, 3, 4, 6, 8):
        for rows in (4, 32):
            fmt = PaletteFormat(num_bits=bits, rows_per_table=rows, table_dtype="f32")
            errors[bits, rows] = float(((fmt.dequantize(*fmt.encode(values)) - values) ** 2).sum())
        assert errors[bits, 4] < errors[bits, 32]
    assert [errors[b, 32] for b in (2, 3, 4, 6, 8)] == sorted((errors[b, 32] for b in (2, 3, 4, 6, 8)), reverse=True)


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(QuantizationError, match="out_features 40 is not a multiple of `rows_per_table` 16; use 4 or 8"):
        PaletteFormat(num_bits=4, rows_per_table=16).fit(some_values(40, 8))
    for bad in ({"num_bits": 5}, {"num_bits": 4, "rows_per_table": 0}, {"num_bits": 4, "table_dtype": "bf16"}):
        with pytest.raises(QuantizationError):
            PaletteFormat(**bad)  # type: ignore[arg-type]
    with pytest.raises(QuantizationError, match="magnitude"):
        PaletteFormat(num_bits=4).fit(np.full((1, 8), 1e5, np.float32))
    with pytest.raises(QuantizationError, match="does not fit"):
        PaletteFormat(num_bits=4).fit(some_values(2, 8), np.ones(9, np.float32))
