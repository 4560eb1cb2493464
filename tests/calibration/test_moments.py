"""Sums over tokens: half of a Hessian is summed, all of it given, also after sums were shared and read before."""

from __future__ import annotations

import pytest
import torch

from qwen3_export.calibration.moments import MomentSums, RelativeError

COLUMNS, TOKENS = 600, 64  # no multiple of the columns that are summed at once


def test_the_hessian_is_whole_and_symmetric_whenever_it_is_read() -> None:
    x_TI, weight_T = torch.randn(TOKENS, COLUMNS), torch.rand(TOKENS)
    sums, other = MomentSums(COLUMNS, has_cross=False), MomentSums(COLUMNS)
    sums.add(x_TI, weight_P=weight_T)
    sums.moments()
    sums.add(x_TI)
    other.add(x_TI, x_TI)
    sums.add_share(other, TOKENS / 2)
    found = sums.moments()
    expected_II = (x_TI * (weight_T + 1.5)[:, None]).T @ x_TI
    assert torch.allclose(found.hessian_II, expected_II, atol=1e-3)
    assert torch.allclose(found.hessian_II, found.hessian_II.T, atol=1e-4)
    assert found.cross_II is None


def test_a_relative_error_is_that_of_all_vectors_together() -> None:
    error = RelativeError()
    error.add(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    error.add(torch.tensor([3.0]), torch.tensor([1.0]))
    assert error.share == pytest.approx(5 / 3)
