"""Errors of outputs that count together: equal to a naive reference, better under the metric, and never ragged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq import outputs as module
from qwen3_export.quantizers.gptq import solver
from qwen3_export.quantizers.gptq.hessian import Moments
from qwen3_export.quantizers.gptq.outputs import OutputMetric, row_blocks
from qwen3_export.quantizers.gptq.solver import GptqSettings, gptq
from qwen3_export.quantizers.palette import PaletteFormat

ROWS, COLUMNS = 64, 256
FORMATS: dict[str, NumberFormat] = {
    **{name: GGML_FORMATS[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "Q8_0")},
    "int4": AffineFormat(num_bits=4, group_size=32),
    "int8_channel": AffineFormat(num_bits=8),
    "palette": PaletteFormat(num_bits=4, rows_per_table=8),
}


def correlated(count: int, width: int, *, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width // 4, width, generator=random)
    return torch.randn(count, width // 4, generator=random) @ mixing + torch.randn(count, width, generator=random)


def weights(rows: int = ROWS, columns: int = COLUMNS) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)) / columns**0.5


def moments(columns: int = COLUMNS) -> Moments:
    x_TI = correlated(2000, columns, seed=2)
    return Moments(hessian_II=x_TI.T @ x_TI)


def metric(rows: int = ROWS, *, spans: int = 1) -> OutputMetric:
    parts = correlated(2000, rows, seed=3).chunk(spans, dim=1)
    return OutputMetric(spans=tuple(part.T @ part for part in parts))


def loss(number_format: NumberFormat, *, outputs: OutputMetric | None, weighed: OutputMetric, columns: int) -> float:
    """tr(G ΔW H ΔWᵀ) of what is chosen, with or without knowing G."""
    result = gptq(weights(columns=columns), moments(columns), number_format, outputs=outputs)
    change = torch.from_numpy(number_format.dequantize(result.codes_OI, result.params)) - weights(columns=columns)
    return float((weighed.times(change) * (change @ moments(columns).hessian_II)).sum())


@pytest.mark.parametrize("columns", [COLUMNS, 2 * COLUMNS])
@pytest.mark.parametrize("name", FORMATS)
def test_less_is_lost_where_errors_of_outputs_count_together(name: str, columns: int) -> None:
    chosen = loss(FORMATS[name], outputs=metric(), weighed=metric(), columns=columns)
    assert chosen < 0.85 * loss(FORMATS[name], outputs=None, weighed=metric(), columns=columns)


@pytest.mark.parametrize("name", ["Q3_K", "int4"])
def test_independent_outputs_of_one_size_change_nothing(name: str) -> None:
    without = gptq(weights(), moments(), FORMATS[name])
    same = gptq(weights(), moments(), FORMATS[name], outputs=OutputMetric(spans=(torch.eye(ROWS),)))
    assert np.array_equal(without.codes_OI, same.codes_OI)


def test_row_by_row_it_equals_a_naive_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Feedback over rows and columns, with the inverses of what is left worked out anew each time, in fp64."""
    monkeypatch.setattr(module, "FEWEST_ROWS", 1)
    monkeypatch.setattr(module, "MOST_ROWS", 1)
    monkeypatch.setattr(solver, "MOST_MOVED", 1e9)
    number_format, rows = FORMATS["int8_channel"], 6
    settings = GptqSettings(step=0.0, rounds=0, cycles=0)
    result = gptq(weights(rows), moments(), number_format, settings=settings, outputs=metric(rows))
    scales = result.params.scale_RG[:, 0].astype(np.float64)
    wanted = naive(weights(rows).double().numpy(), scales, rows_metric=_damped(metric(rows).spans[0], module.DAMPING))
    ours = number_format.dequantize(result.codes_OI, result.params)
    assert np.mean(np.abs(ours - wanted) < 1e-5) > 0.97


def naive(left: np.ndarray, scales: np.ndarray, *, rows_metric: np.ndarray) -> np.ndarray:
    columns_metric = _damped(moments().hessian_II, 0.01)
    values = np.zeros_like(left)
    # Unit lower triangular factors on both sides: what they carry here comes from earlier rows and columns alone.
    row_factor, column_factor = _unit(rows_metric), _unit(columns_metric)
    for j in range(left.shape[1]):
        for r in range(len(left)):
            error = left - values
            error[r, j] = 0
            target = left[r, j] + row_factor[r] @ error @ column_factor[j]
            values[r, j] = scales[r] * np.clip(np.round(target / scales[r]), -128, 127)
    return values


def _unit(matrix: np.ndarray) -> np.ndarray:
    """The unit lower triangular L of matrix = L' D L, with ones on its diagonal."""
    upper = np.linalg.cholesky(matrix[::-1, ::-1])[::-1, ::-1]  # matrix = upper @ upper.T, upper triangular
    factor: np.ndarray = (upper / upper.diagonal()).T
    return factor


def _damped(matrix: Tensor, damping: float) -> np.ndarray:
    found = matrix.double().numpy()
    damped: np.ndarray = found / found.diagonal().mean() + damping * np.eye(len(found))
    return damped


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K"])
def test_a_small_row_is_not_given_up_for_the_others(name: str) -> None:
    """Its own errors cost little, so it could make up for any error of theirs; on other text it would be missed."""
    gradient_PO, w_OI = correlated(2000, ROWS, seed=3), weights()
    gradient_PO[:, -8:] = 0.3 * gradient_PO[:, :8]
    w_OI[-8:] *= 0.1
    outputs = OutputMetric(spans=(gradient_PO.T @ gradient_PO,))
    result = gptq(w_OI, moments(), FORMATS[name], outputs=outputs)
    stored, own = FORMATS[name].dequantize(result.codes_OI, result.params)[-8:], w_OI.numpy()[-8:]
    cosine = (stored * own).sum(1) / np.linalg.norm(stored, axis=1) / np.linalg.norm(own, axis=1)
    assert float(cosine.min()) > 0.6


def test_the_number_of_threads_changes_nothing() -> None:
    one, three = (gptq(weights(), moments(), FORMATS["Q4_K"], outputs=metric(), threads=threads) for threads in (1, 3))
    assert np.array_equal(one.codes_OI, three.codes_OI)
    assert np.array_equal(one.params.scale_RG, three.params.scale_RG)


def test_blocks_cover_each_span_in_whole_groups() -> None:
    blocks = row_blocks(metric(96, spans=2), together=8)
    assert [row for block in blocks for row in range(96)[block.rows]] == list(range(96))
    assert all(block.rows.start % 8 == 0 for block in blocks)
    assert {block.after.stop for block in blocks} == {48, 96}
    assert all(block.after_SB.shape == (len(range(96)[block.after]), len(range(96)[block.rows])) for block in blocks)


@pytest.mark.parametrize("together", [None, 32])
def test_rows_that_spans_would_cut_apart_count_as_independent(together: int | None) -> None:
    assert row_blocks(metric(96, spans=2), together=together) == ()


def test_outputs_without_gradients_change_nothing() -> None:
    nothing = OutputMetric(spans=(torch.zeros(ROWS, ROWS),))
    found = gptq(weights(), moments(), FORMATS["Q4_K"], outputs=nothing)
    assert found.method == "gptq"
    assert np.array_equal(found.codes_OI, gptq(weights(), moments(), FORMATS["Q4_K"]).codes_OI)
