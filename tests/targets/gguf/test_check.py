"""The whole check on the demo model: floors as measured, gates, and what is left without a runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checks import checked

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.parity import check as check_module
from qwen3_export.parity.report import Gates
from qwen3_export.targets.gguf import llama
from qwen3_export.targets.gguf.activations import round_q8_0, round_q8_k
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.recipes import find_recipe


@pytest.fixture(scope="module")
def demo(demo_folder: Path) -> Model:
    return load(demo_folder)


@pytest.fixture(scope="module")
def q4_file(demo: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("check") / "q4_k_m.gguf"
    emit(prepare(demo, find_recipe("q4_k_m"), out=path).files)
    return path


def test_a_right_file_passes_with_the_floors_that_were_measured(demo: Model, q4_file: Path) -> None:
    pytest.importorskip("llama_cpp")
    said: list[str] = []
    report = checked("gguf", q4_file, demo.graph, demo.tokenizer, threads=1, say=said.append)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld < 1e-10
    assert report.decode.max_abs_vs_prefill < 1e-4
    # The modelled arithmetic predicts what llama.cpp's costs: within 10 % when measured, a third here.
    assert report.shipped.mean_kld == pytest.approx(report.floor.mean_kld, rel=0.33)
    assert 1e-3 < report.quantization.mean_kld < 1e-2
    assert (report.recipe, report.method, report.model) == ("q4_k_m", "rtn", demo.graph.name)
    assert report.positions == 256
    assert said


def test_gates_apply_to_end_to_end(demo: Model, q4_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llama_cpp")
    whole = check_module.tokenize_prompts
    monkeypatch.setattr(check_module, "tokenize_prompts", lambda *a, **k: whole(*a, **{**k, "max_tokens": 24})[:2])
    gates = Gates(max_mean_kld=1e-6, min_top1=0.999)
    report = checked("gguf", q4_file, demo.graph, demo.tokenizer, gates=gates, threads=1)
    assert report.verdict == "fail"
    assert report.end_to_end.status == "fail"
    assert any("mean KLD" in reason for reason in report.gates)
    assert report.quantization.status == report.conversion.status == report.shipped.status == "pass"


def test_without_llama_cpp_nothing_is_claimed(demo: Model, q4_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama, "is_installed", lambda: False)
    monkeypatch.setattr(llama, "runtime_version", lambda: None)
    report = checked("gguf", q4_file, demo.graph, demo.tokenizer)
    assert report.verdict == "not_run"
    assert report.quantization.status == "pass"
    statuses = {number.status for number in (report.conversion, report.shipped, report.end_to_end, report.decode)}
    assert statuses == {"not_run"}
    assert report.runtime.version is None
    assert any("is not installed" in reason for reason in report.reasons)


def test_rounded_activations_are_on_their_grid() -> None:
    x_TI = torch.randn(5, 512, generator=torch.Generator().manual_seed(0))
    x_TI[2] = 0.0
    for rounded, size in ((round_q8_0(x_TI), 32), (round_q8_k(x_TI), 256)):
        blocks = x_TI.reshape(5, -1, size)
        step = blocks.abs().amax(-1, keepdim=True) / 127
        # Half a step, and the float16 scale of Q8_0 (2⁻¹¹ of 127 steps).
        assert ((rounded.reshape(blocks.shape) - blocks).abs() <= step * (0.5 + 127 * 2.0**-11) + 1e-12).all()
        assert torch.equal(rounded[2], torch.zeros(512))
        codes = (rounded.reshape(blocks.shape) / step.clamp_min(1e-30)).numpy()
        assert np.abs(codes - np.round(codes)).max() < 0.1


def test_q8_0_rounds_as_gguf_py_does() -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    x_TI = torch.randn(7, 256, generator=torch.Generator().manual_seed(1))
    stored = quantize(x_TI.numpy(), GGMLQuantizationType.Q8_0)
    expected = dequantize(stored, GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(round_q8_0(x_TI).numpy(), expected)
