"""The Python interface does what the README shows."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import qwen3_export as qx
from qwen3_export.errors import ExportError


def test_the_readmes_example(tmp_path: Path) -> None:
    model = qx.load("demo")
    export = qx.prepare(model, qx.find_recipe("q8_0"), out=tmp_path / "demo.gguf")
    qx.emit(export.files)
    stored = qx.read(tmp_path / "demo.gguf", model)
    for weight in export.graph:
        np.testing.assert_array_equal(stored.weights[weight.name].read(), weight.read())
    report = qx.check(tmp_path / "demo.gguf", model)
    assert report.verdict == ("pass" if find_spec("llama_cpp") else "not_run"), report.reasons
    assert report.quantization.status == "pass"
    assert report.quantization.mean_kld < 1e-3


def test_a_solver_between_prepare_and_emit(tmp_path: Path) -> None:
    model = qx.load("demo")
    export = qx.prepare(model, qx.find_recipe("q4_0"), out=tmp_path / "demo.gguf", is_calibrated=True)
    text = qx.read_calibration(None, model.tokenizer, sequence_length=128, num_samples=8)
    solution = qx.solve("gptq", model.graph, export.weight_formats, text, work_dir=tmp_path / "work")
    solved = qx.with_solution(export, solution)
    assert solved.num_bytes > export.num_bytes  # where it came from is told in the metadata
    qx.emit(solved.files)
    stored = qx.read(tmp_path / "demo.gguf", model)
    for name in ("model.embed_tokens", "model.layers.3.mlp.down_proj"):
        np.testing.assert_array_equal(stored.weights[name].read(), solution.graph.weights[name].read())
        assert solution.errors[name] < 0.02


def test_a_solver_that_there_is_not() -> None:
    model = qx.load("demo")
    with pytest.raises(ExportError, match="gptq and awq"):
        qx.solve("magic", model.graph, {}, qx.read_calibration(None, model.tokenizer), work_dir=Path("work"))


def test_every_name_is_there_and_no_other() -> None:
    for name in qx.__all__:
        assert getattr(qx, name) is not None
    with pytest.raises(AttributeError):
        qx.nothing  # noqa: B018


def test_importing_costs_nothing() -> None:
    code = "import sys, qwen3_export; print([m for m in ('torch', 'numpy', 'gguf') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
