"""qwen3-export gguf --method gptq, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import pytest
from models import write_model


def tiny(folder: Path) -> Path:
    return write_model(folder / "m", num_hidden_layers=1)


def test_the_same_types_other_values_and_where_they_came_from(
    run, text: Path, tmp_path: Path, tmp_path_factory
) -> None:
    model = tiny(tmp_path_factory.mktemp("model"))
    common = ("gguf", "--model", model, "--quant", "q4_k_m", "--no-check")
    options = ("--calibration", text, "--sequence-length", "256", "--samples", "8")
    outcome = run(*common, "--method", "gptq", *options, "--out", "gptq.gguf")
    assert outcome.code == 0, outcome.err
    assert "sha256" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gptq.gguf"]
    run(*common, "--out", "rtn.gguf")
    solved, plain = gguf.GGUFReader("gptq.gguf"), gguf.GGUFReader("rtn.gguf")
    assert [t.tensor_type for t in solved.tensors] == [t.tensor_type for t in plain.tensors]
    assert any((a.data != b.data).any() for a, b in zip(solved.tensors, plain.tensors, strict=True))
    assert solved.fields["qwen3_export.method"].contents() == "gptq"
    assert solved.fields["qwen3_export.calibration.dataset"].contents() == text.name
    errors = solved.fields["qwen3_export.calibration.tensor_errors"].contents()
    touched = [error >= 0 for error in errors]
    assert touched == [tensor.tensor_type.name != "F32" for tensor in solved.tensors]
    assert max(errors) < 0.05
    assert "output error" in run("inspect", "gptq.gguf", "--tensors").out
    assert "output error" not in run("inspect", "rtn.gguf", "--tensors").out


def test_a_work_folder_of_ones_own_is_kept_and_used_again(run, text: Path, tmp_path: Path, tmp_path_factory) -> None:
    model = tiny(tmp_path_factory.mktemp("model"))
    options = ("--method", "gptq", "--calibration", text, "--samples", "4", "--work-dir", "work", "--no-check")
    first = run("gguf", "--model", model, *options, "--out", "a.gguf")
    assert first.code == 0, first.err
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.solved")}
    assert stamps
    again = run("gguf", "--model", model, *options, "--out", "b.gguf")
    assert again.code == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.solved")} == stamps
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_the_report_names_method_and_text(run, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    outcome = run(
        "gguf", "--model", "demo", "--quant", "q4_0", "--method", "gptq", "--calibration", text, "--samples", "4"
    )
    assert outcome.code == 0, outcome.out
    report = json.loads((tmp_path / "demo-q4_0.report.json").read_text())
    assert report["method"] == "gptq"
    assert report["verdict"] == "pass"
    assert report["calibration"]["dataset"] == text.name
    assert set(report["calibration"]["tensor_errors"]) >= {"token_embd.weight", "blk.0.attn_q.weight"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibration", "x.txt"], "--method gptq"),
        (["--method", "gptq", "--imatrix", "x.gguf"], "--imatrix is for"),
        (["--method", "gptq", "--calibration", "missing.txt"], "missing.txt"),
        (["--method", "gptq", "--calibration", "empty.txt"], "empty.txt"),
        (["--method", "gptq", "--calibration", "same.txt"], "different tokens"),
    ],
)
def test_refused_in_one_sentence(arguments: list[str], words: str, run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "same.txt").write_text("the " * 5000)
    outcome = run("gguf", "--model", "demo", "--no-check", *arguments)
    assert outcome.code == 1
    assert words in outcome.err.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.txt", "same.txt"]


def test_tuning_is_told_recorded_and_kept_for_a_second_time(run, text: Path, tmp_path: Path, tmp_path_factory) -> None:
    model = tiny(tmp_path_factory.mktemp("model"))
    options = ("--method", "gptq", "--tune", "--calibration", text, "--sequence-length", "64", "--samples", "8")
    common = ("gguf", "--model", model, *options, "--work-dir", "work", "--no-check")
    planned = run(*common, "--dry-run")
    assert "forecast: " in planned.err
    first = run(*common, "--out", "a.gguf")
    assert first.code == 0, first.err
    assert "norms and scales: " in first.err
    reader = gguf.GGUFReader("a.gguf")
    record = json.loads(reader.fields["qwen3_export.tuning"].contents())
    assert set(record["by_kind"]) == {"text", "thinking", "non-thinking"}
    assert "qwen3_export.tuning" in run("inspect", "a.gguf").out
    state = next((tmp_path / "work").glob("tuning-*/state.safetensors"))
    stamp = state.stat().st_mtime_ns
    again = run(*common, "--out", "b.gguf")
    assert again.code == 0, again.err
    assert state.stat().st_mtime_ns == stamp
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    run("gguf", "--model", model, *options[:2], *options[3:], "--no-check", "--out", "recipe.gguf")
    chosen = run("gguf", "--model", model, *options, "--allocate", "--no-check", "--out", "chosen.gguf")
    assert chosen.code == 0, chosen.err
    assert (tmp_path / "chosen.gguf").stat().st_size <= (tmp_path / "recipe.gguf").stat().st_size
    for method in ((), ("--method", "awq", "--dry-run")):
        refused = run("gguf", "--model", model, "--tune", *method)
        assert (refused.code, refused.out) == (1, "")
        assert "--tune goes on from codes that a solver has chosen: it is for --method gptq" in refused.err
