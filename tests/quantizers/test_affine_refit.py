"""Refitted scales: never worse under the whole metric, at the optimum where nothing is rounded, zero points kept."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.affine.params import AffineParams
from qwen3_export.quantizers.affine.refit import refit_scales

Values = NDArray[np.float32]


def problem(number_format: AffineFormat) -> tuple[Values, Values, NDArray[np.int8], AffineParams]:
    """Targets, a metric with correlated columns, and codes and parameters by plain rounding."""
    random = np.random.default_rng(0)
    target_RJ = random.normal(size=(24, 96)).astype(np.float32)
    x_TJ = random.normal(size=(300, 96)) @ (np.eye(96) + 0.3 * random.normal(size=(96, 96)))
    metric_JJ = (x_TJ.T @ x_TJ / 300).astype(np.float32)
    codes_RJ, params = number_format.encode(target_RJ)
    return target_RJ, metric_JJ, codes_RJ, params


def row_losses(values_RJ: Values, target_RJ: Values, metric_JJ: Values) -> NDArray[np.float64]:
    error_RJ = (values_RJ - target_RJ).astype(np.float64)
    return np.einsum("rj,jk,rk->r", error_RJ, metric_JJ.astype(np.float64), error_RJ)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("scale_dtype", ["f32", "f16", "bf16"])
def test_every_row_is_at_least_as_good_and_the_gradient_is_right(symmetric: bool, scale_dtype: str) -> None:
    number_format = AffineFormat(num_bits=3, group_size=32, symmetric=symmetric, scale_dtype=scale_dtype)
    target_RJ, metric_JJ, codes_RJ, params = problem(number_format)
    before_RJ = number_format.dequantize(codes_RJ, params)
    found, gradient_RJ = refit_scales(
        codes_RJ,
        params,
        gradient_RJ=(before_RJ - target_RJ) @ metric_JJ,
        metric_JJ=metric_JJ,
        scale_dtype=number_format.scale_dtype,
    )
    after_RJ = number_format.dequantize(codes_RJ, found)
    old_R, new_R = (row_losses(values_RJ, target_RJ, metric_JJ) for values_RJ in (before_RJ, after_RJ))
    assert (new_R <= old_R * (1 + 1e-5)).all()
    assert new_R.sum() < 0.99 * old_R.sum()
    np.testing.assert_allclose(gradient_RJ, (after_RJ - target_RJ) @ metric_JJ, atol=2e-3)
    np.testing.assert_array_equal(found.zero_point_RG, params.zero_point_RG)
    assert (np.sign(found.scale_RG) == np.sign(params.scale_RG)).all()


def test_one_group_alone_reaches_the_least_squares_scale() -> None:
    number_format = AffineFormat(num_bits=4, group_size=96)
    target_RJ, metric_JJ, codes_RJ, params = problem(number_format)
    before_RJ = number_format.dequantize(codes_RJ, params)
    found, _ = refit_scales(
        codes_RJ, params, gradient_RJ=(before_RJ - target_RJ) @ metric_JJ, metric_JJ=metric_JJ, scale_dtype="f32"
    )
    levels_RJ = codes_RJ.astype(np.float64)
    expected_R = np.einsum("rj,jk,rk->r", levels_RJ, metric_JJ, target_RJ) / np.einsum(
        "rj,jk,rk->r", levels_RJ, metric_JJ, levels_RJ
    )
    np.testing.assert_allclose(found.scale_RG[:, 0], expected_R, rtol=1e-4)
