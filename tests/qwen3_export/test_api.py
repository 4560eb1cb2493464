"""The Python API: the same ten lines for every target, and the same bytes as the command line."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import DEMO, write_model

import qwen3_export as qx
from qwen3_export.cli.main import main
from qwen3_export.errors import ExportError, OptionError, OutputError

# What each target needs: to write, and to run what was written
SESSIONS = {
    "gguf": ("q4_0", {}, "gguf", "llama_cpp"),
    "onnx": ("int4", {"group_size": 64}, "onnx_ir", "onnxruntime"),
    "executorch": ("8da4w", {"max_seq_len": 128}, "executorch", "executorch"),
    "coreml": ("palette4", {"context_length": 256}, "coremltools", "coremltools"),
}


@pytest.fixture(scope="module")
def model() -> qx.Model:
    return qx.load("demo")


@pytest.fixture(scope="module")
def short(model: qx.Model) -> qx.Calibration:
    return qx.calibration_text(None, model, sequence_length=128, num_samples=8)


@pytest.mark.parametrize("target", SESSIONS)
def test_ten_lines_for_any_target(
    target: str, model: qx.Model, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe, options, writer, runtime = SESSIONS[target]
    pytest.importorskip(writer)
    if target == "executorch":  # lowering takes seconds a layer
        model = qx.load(model_folder("tied"))
    out = tmp_path / ("demo.gguf" if target == "gguf" else "demo")
    plan = qx.plan(model, target, recipe, out=out, **options)
    assert plan.num_bytes > 1e6
    assert 4 < plan.bits_per_weight < 9
    assert not out.exists()
    artifact = qx.export(plan)
    assert artifact == out
    report = qx.check(artifact, model, gates=qx.Gates(max_mean_kld=0.5))
    assert report.verdict == ("pass" if _is_there(runtime) else "not_run"), report.reasons
    for name in ("parity.html", "parity.json", "parity.xml"):
        report.save(tmp_path / name)
        with pytest.raises(OutputError, match="exists already"):
            report.save(tmp_path / name)
        report.save(tmp_path / name, overwrite=True)
    stored = qx.read(artifact, model)
    assert stored.weights.keys() >= model.graph.weights.keys()
    if _is_there(runtime):
        answer = qx.generate(artifact, "What is the opposite of hot?", think=False, temperature=0, max_new_tokens=32)
        assert answer == "The opposite of hot is cold." or (model.name != "demo" and answer)


def _is_there(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize("quant", ["iq4_nl", "q4_k_m"])
def test_a_solved_file_is_the_command_lines(
    quant: str, model: qx.Model, short: qx.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of these mixes has another format for some tensors where values are calibrated."""
    plan = qx.plan(model, "gguf", quant, out=tmp_path / "library.gguf")
    artifact = qx.export(plan, method="gptq", text=short)
    words = ["gguf", "--model", "demo", "--quant", quant, "--method", "gptq", "--no-check", "--sequence-length", "128",
             "--samples", "8", "--out", str(tmp_path / "command.gguf")]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["qwen3-export", *words])
    with pytest.raises(SystemExit) as ending:
        main()
    assert not ending.value.code
    assert artifact.read_bytes() == (tmp_path / "command.gguf").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["command.gguf", "library.gguf"]


def test_a_plan_for_a_solver_is_the_one_that_is_written(tmp_path: Path) -> None:
    """From eight layers on, llama.cpp gives some tensors of q4_0 another format where an importance matrix is there."""
    model = qx.load(write_model(tmp_path / "eight", "tied", num_hidden_layers=8))
    text = qx.calibration_text(None, model, sequence_length=128, num_samples=8)
    out = tmp_path / "a.gguf"
    rounded = qx.plan(model, "gguf", "q4_0", out=out)
    planned = qx.plan(model, "gguf", "q4_0", out=out, method="gptq")
    assert planned.bits_per_weight != rounded.bits_per_weight
    qx.export(rounded, method="gptq", text=text)
    assert qx.check(out, model).bits_per_weight == pytest.approx(planned.bits_per_weight, rel=1e-3)


def test_keys_are_balanced_on_the_text(model: qx.Model, short: qx.Calibration, tmp_path: Path) -> None:
    plain = qx.export(qx.plan(model, "gguf", "q8_0", out=tmp_path / "plain.gguf"))
    plan = qx.plan(model, "gguf", "q8_0", out=tmp_path / "balanced.gguf", balance_keys=True)
    balanced = qx.export(plan, text=short)
    assert plain.read_bytes() != balanced.read_bytes()
    assert qx.check(balanced, model).values == ()


@pytest.mark.parametrize(
    ("target", "recipe", "options", "told"),
    [
        ("gguf", "q9", {}, "q9"),
        ("tensorflow", "int4", {}, "no such target; there is gguf, onnx, executorch, coreml"),
        ("gguf", "q4_k_m", {"group_size": 32}, "group_size: GGUF has no such option"),
        ("onnx", "int4", {"group_size": 31}, "`group_size` 31: use one of 16, 32, 64, 128, 256"),
        ("onnx", "int4", {"flavour": "tflite"}, "`flavour` tflite: use one of genai, transformers.js"),
        ("gguf", "q4_k_m", {"split_max_size": "2X"}, "`split_max_size` 2X: not a size"),
        ("gguf", "q4_k_m", {"method": "magic"}, "`method` magic: no such method"),
        ("gguf", "q4_k_m", {"method": "gptq", "imatrix": Path("x.gguf")}, "`imatrix` is for `method` rtn"),
    ],
)
@pytest.mark.onnx
def test_refusals_speak_of_parameters(
    target: str, recipe: str, options: dict[str, Any], told: str, model: qx.Model, tmp_path: Path
) -> None:
    pytest.importorskip("onnx_ir")
    with pytest.raises(ExportError, match=told.replace("`", ".")):
        qx.plan(model, target, recipe, out=tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_replaced_unasked(model: qx.Model, tmp_path: Path) -> None:
    out = tmp_path / "demo.gguf"
    plan = qx.plan(model, "gguf", "q8_0", out=out)
    out.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            qx.export(plan, overwrite=overwrite)
    assert out.read_text() == "years of work"
    out.unlink()
    qx.export(plan)
    with pytest.raises(OutputError, match="exists already"):
        qx.export(plan)
    qx.export(plan, overwrite=True)


def test_a_text_that_nothing_reads_is_refused(model: qx.Model, short: qx.Calibration, tmp_path: Path) -> None:
    plan = qx.plan(model, "gguf", "q8_0", out=tmp_path / "a.gguf")
    with pytest.raises(OptionError, match="rtn uses no text"):
        qx.export(plan, text=short)


def test_a_report_has_a_known_ending(model: qx.Model, tmp_path: Path) -> None:
    artifact = qx.export(qx.plan(model, "gguf", "q8_0", out=tmp_path / "a.gguf"))
    with pytest.raises(OutputError, match="choose one of these endings"):
        qx.check(artifact, model).save(tmp_path / "report.pdf")


def test_every_name_is_there_and_imported_late() -> None:
    assert all(hasattr(qx, name) for name in qx.__all__)
    with pytest.raises(AttributeError, match="no attribute 'prepare'"):
        qx.prepare  # noqa: B018 (asking for it is the test)


def test_the_readmes_session_is_the_one_tested() -> None:
    readme = (DEMO.parents[2] / "README.md").read_text(encoding="utf-8")
    code = readme.partition("```python\n")[2].partition("```")[0]
    for name in ("load", "plan", "calibration_text", "export", "check", "Gates", "generate"):
        assert f"qx.{name}(" in code
