"""GPTQ: equal to a naive reference, better than plain rounding, and what it does with damaged Hessians."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq.hessian import Moments, aim, factor_inverse
from qwen3_export.quantizers.gptq.solver import GptqSettings, gptq
from qwen3_export.quantizers.palette import PaletteFormat

ROWS, COLUMNS = 12, 512
PLAIN_GPTQ = GptqSettings(step=0.0, rounds=0, cycles=0)
FORMATS: dict[str, NumberFormat] = {
    **{name: GGML_FORMATS[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "Q4_0", "Q5_1", "Q8_0")},
    "int4": AffineFormat(num_bits=4, group_size=64),
    "int4_asym": AffineFormat(num_bits=4, group_size=128, symmetric=False),
    "int8_channel": AffineFormat(num_bits=8),
    "palette": PaletteFormat(num_bits=4, rows_per_table=4),
}


def correlated_inputs(tokens: int = 2000, columns: int = COLUMNS, *, seed: int = 0) -> Tensor:
    """Inputs of few degrees of freedom and some noise, with columns of very different size."""
    random = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns // 4, columns, generator=random)
    hidden = torch.randn(tokens, columns // 4, generator=random)
    noise = torch.randn(tokens, columns, generator=random)
    return (hidden @ mixing / columns**0.5 + 0.2 * noise) * torch.rand(columns, generator=random).add(0.1)


def weights(rows: int = ROWS, columns: int = COLUMNS, *, seed: int = 1) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) / columns**0.5


def moments_of(x_TI: Tensor) -> Moments:
    return Moments(hessian_II=x_TI.T @ x_TI)


def column_group(params: Any, index: int) -> Any:
    """The parameters that round the columns of one group."""
    groups = [field.name for field in fields(params) if getattr(params, field.name) is not None]
    picked = {name: getattr(params, name)[:, index : index + 1] for name in groups if name.endswith("_RG")}
    return replace(params, **picked)


def naive_gptq(weights_OI: Tensor, hessian_II: Tensor, number_format: NumberFormat, *, damping: float) -> np.ndarray:
    """Column by column in fp64, with the inverse of what is left of the Hessian worked out anew each time."""
    left = weights_OI.double().numpy().copy()
    hessian = hessian_II.double().numpy()
    hessian = hessian + damping * hessian.diagonal().mean() * np.eye(len(hessian))
    width, columns = 256, left.shape[1]
    values = np.empty_like(left)
    for first in range(0, columns, width):
        block = slice(first, first + width)
        inverse = np.linalg.inv(hessian[first:, first:])
        importance = np.linalg.inv(inverse[:width, :width]).diagonal()
        params = number_format.fit(
            left[:, block].astype(np.float32), importance.astype(np.float32), weighting="importance"
        )
        for j in range(first, first + width):
            group = column_group(params, (j - first) * params.scale_RG.shape[1] // width)
            code = number_format.round(left[:, j : j + 1].astype(np.float32), group)
            values[:, j] = number_format.dequantize(code, group)[:, 0]
            row = np.linalg.solve(hessian[j:, j:], np.eye(columns - j)[0])
            left[:, j:] -= np.outer((left[:, j] - values[:, j]) / row[0], row)
    return values


@pytest.mark.parametrize("name", ["Q4_K", "int4"])
def test_without_improvements_it_equals_a_naive_reference(name: str) -> None:
    x_TI, w_OI = correlated_inputs(), weights(4)
    result = gptq(w_OI, moments_of(x_TI), FORMATS[name], settings=PLAIN_GPTQ)
    ours = FORMATS[name].dequantize(result.codes_OI, result.params)
    naive = naive_gptq(w_OI, x_TI.T @ x_TI, FORMATS[name], damping=0.01)
    # A code on the edge between two levels may fall either way in fp32, and moves what comes after it.
    assert np.mean(np.abs(ours - naive) < 1e-5) > 0.97
    assert result.method == "gptq"


@pytest.mark.parametrize("name", FORMATS)
def test_beats_rounding_and_every_stage_helps(name: str) -> None:
    moments = moments_of(correlated_inputs())
    plain, slabs, full = (
        gptq(weights(), moments, FORMATS[name], settings=settings)
        for settings in (PLAIN_GPTQ, GptqSettings(cycles=0), GptqSettings())
    )
    assert plain.error < 0.8 * plain.rtn_error
    if name != "palette":  # whose tables stay as they were fitted
        assert slabs.error < 0.98 * plain.error
        assert full.error <= slabs.error


@pytest.mark.parametrize("name", FORMATS)
def test_the_error_is_that_of_what_is_stored(name: str) -> None:
    x_TI, w_OI = correlated_inputs(), weights()
    result = gptq(w_OI, moments_of(x_TI), FORMATS[name])
    stored = torch.from_numpy(FORMATS[name].dequantize(result.codes_OI, result.params))
    outputs, wanted = x_TI.double() @ stored.double().T, x_TI.double() @ w_OI.double().T
    assert result.error == pytest.approx(float((outputs - wanted).square().sum() / wanted.square().sum()), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in FORMATS if name in GGML_FORMATS])
def test_codes_and_parameters_survive_packing(name: str) -> None:
    number_format = GGML_FORMATS[name]
    result = gptq(weights(), moments_of(correlated_inputs()), number_format)
    unpacked = number_format.unpack(number_format.pack(result.codes_OI, result.params))
    assert np.array_equal(number_format.dequantize(*unpacked), number_format.dequantize(result.codes_OI, result.params))


def test_the_number_of_threads_changes_nothing() -> None:
    moments, w_OI = moments_of(correlated_inputs()), weights(200)
    one, three = (gptq(w_OI, moments, GGML_FORMATS["Q4_K"], threads=threads) for threads in (1, 3))
    assert np.array_equal(one.codes_OI, three.codes_OI)
    assert np.array_equal(one.params.scale_RG, three.params.scale_RG)


def test_dead_columns_keep_their_rounded_value() -> None:
    x_TI, w_OI = correlated_inputs(), weights()
    x_TI[:, 32:64] = 0
    number_format = GGML_FORMATS["Q8_0"]
    result = gptq(w_OI, moments_of(x_TI), number_format)
    stored = number_format.dequantize(result.codes_OI, result.params)[:, 32:64]
    assert np.abs(stored - w_OI[:, 32:64].numpy()).max() < np.abs(w_OI.numpy()).max() / 127


def test_a_singular_hessian_is_damped_and_the_damping_reported() -> None:
    x_TI = torch.ones(100, COLUMNS)  # one token repeated
    result = gptq(weights(), moments_of(x_TI), GGML_FORMATS["Q4_K"], settings=GptqSettings(damping=1e-20))
    assert result.damping > 1e-20
    assert np.isfinite(result.error)


def test_no_tokens_at_all_give_plain_rounding() -> None:
    result = gptq(weights(), Moments(hessian_II=torch.zeros(COLUMNS, COLUMNS)), GGML_FORMATS["Q4_K"])
    stored = GGML_FORMATS["Q4_K"].dequantize(result.codes_OI, result.params)
    assert np.abs(stored - weights().numpy()).max() < 0.1 * weights().abs().max()


def test_a_hessian_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        factor_inverse(torch.full((4, 4), float("nan")), damping=0.01)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(QuantizationError, match="damping"):
        GptqSettings(damping=0.0)
    with pytest.raises(QuantizationError, match="step"):
        GptqSettings(step=1.5)


def test_columns_that_blocks_do_not_divide_are_refused() -> None:
    with pytest.raises(QuantizationError, match="not a multiple"):
        gptq(weights(columns=320), moments_of(correlated_inputs(columns=320)), GGML_FORMATS["Q4_K"])


def test_rows_need_not_be_whole_slabs() -> None:
    result = gptq(weights(columns=320), moments_of(correlated_inputs(columns=320)), GGML_FORMATS["Q4_0"])
    assert result.codes_OI.shape == (ROWS, 320)
    assert result.error < 0.8 * result.rtn_error


def test_the_aim_reproduces_the_outputs_of_other_inputs() -> None:
    exact_TI, w_OI = correlated_inputs(), weights()
    x_TI = exact_TI + 0.1 * correlated_inputs(seed=5)
    residual_TO = 0.1 * torch.randn(len(x_TI), ROWS, generator=torch.Generator().manual_seed(3))
    moments = Moments(hessian_II=x_TI.T @ x_TI, cross_II=exact_TI.T @ x_TI, residual_OI=residual_TO.T @ x_TI)
    target_OI = aim(w_OI, moments, factor_inverse(moments.hessian_II, damping=1e-6))
    best_IO = torch.linalg.lstsq(x_TI.double(), exact_TI.double() @ w_OI.double().T + residual_TO.double()).solution
    assert torch.allclose(target_OI.double(), best_IO.T, atol=1e-3)


def test_the_aim_is_the_weight_where_nothing_has_changed() -> None:
    x_TI = correlated_inputs()
    hessian_II = x_TI.T @ x_TI
    moments = Moments(hessian_II=hessian_II, cross_II=hessian_II, residual_OI=torch.zeros(ROWS, COLUMNS))
    assert torch.equal(aim(weights(), moments, factor_inverse(hessian_II, damping=0.01)), weights())
