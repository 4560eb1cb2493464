"""Expected losses against measured ones: one weight rounded, and the model's KL divergence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qwen3_export.calibration.sensitivity import losses as module
from qwen3_export.calibration.sensitivity.backward import Passed
from qwen3_export.calibration.sensitivity.losses import left_by_solver, weight_losses
from qwen3_export.calibration.sensitivity.run import measure_sensitivity
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.graph import Kind, Role
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq.hessian import Moments
from qwen3_export.quantizers.gptq.solver import gptq
from qwen3_export.quantizers.weights.rounded import RoundedWeight
from qwen3_export.targets.allocating import mean_kld

FORMATS = (GGML_FORMATS["Q3_K"], GGML_FORMATS["Q5_K"])


@pytest.fixture(scope="module")
def model() -> Model:
    return load("demo")


def test_estimates_are_near_what_is_measured(model: Model, tmp_path: Path) -> None:
    graph = model.graph.truncated(0, 2)
    windows = read_calibration(None, model.tokenizer, num_samples=6, sequence_length=128).windows
    names = [weight.name for weight in graph if len(weight.shape) == 2]
    assert len(names) == 15
    found = measure_sensitivity(graph, dict.fromkeys(names, FORMATS), windows, work_dir=tmp_path, threads=2)
    expected, measured = [], []
    for name in names:
        for number_format in FORMATS:
            rounded = RoundedWeight(source=graph.weights[name], number_format=number_format)
            measured.append(mean_kld(graph, graph.with_weights({**graph.weights, name: rounded}), windows))
            expected.append(found.loss(name, number_format.name, is_solved=False))
    ratios = np.log(np.array(expected) / np.array(measured))
    assert abs(ratios.mean()) < 0.25
    assert ratios.std() < 0.35
    assert np.corrcoef(np.argsort(np.argsort(expected)), np.argsort(np.argsort(measured)))[0, 1] > 0.95
    assert all(0 < found.left[name] < 1 for name in names)


def test_some_rows_stand_for_all(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where neighbouring rows share parameters."""
    weight = model.graph[Role(Kind.GATE_PROJ, 0)]
    generator = torch.Generator().manual_seed(0)
    rows, columns = weight.shape
    passed = Passed(
        inputs=[torch.randn(200, columns, generator=generator)],
        gradients=[torch.randn(200, rows, generator=generator)],
    )
    formats = (AffineFormat(num_bits=4, group_size=32), GGML_FORMATS["Q4_K"])
    whole = weight_losses(weight, formats, passed, positions=200, threads=2)
    monkeypatch.setattr(module, "MAX_ROWS", rows // 4)
    some = weight_losses(weight, formats, passed, positions=200, threads=1)
    for name, loss in whole.items():
        assert some[name] == pytest.approx(loss, rel=0.25)
        assert some[name] != loss


def test_what_a_solver_leaves() -> None:
    """Inputs that are alike let columns make up for each other; independent ones do not."""
    generator = torch.Generator().manual_seed(1)
    independent = torch.randn(4000, 256, generator=generator)
    mixing = torch.randn(256, 256, generator=generator) * torch.logspace(0, -2, 256)
    for x_TI, low, high in ((independent, 0.85, 1.0), (independent @ mixing.T, 0.01, 0.4)):
        expected = left_by_solver(Passed(inputs=[x_TI], gradients=[]))
        weights = torch.randn(64, 256, generator=generator)
        solved = gptq(weights, Moments(hessian_II=x_TI.T @ x_TI), GGML_FORMATS["Q4_K"])
        assert low < expected < high
        assert solved.error / solved.rtn_error == pytest.approx(expected, rel=0.6)
