"""qwen3-export coreml, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("coremltools")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = ["chat_template.jinja", "config.json", "generation_config.json", "model.mlpackage", "tokenizer.json",
         "tokenizer_config.json"]  # fmt: skip


def test_a_folder_and_its_report(run, tmp_path: Path) -> None:
    outcome = run("coreml", "--model", "demo", "--quant", "palette6", "--context-length", "256")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path) == ["demo-coreml-palette6"]
    folder = tmp_path / "demo-coreml-palette6"
    assert names(folder) == sorted([*FILES, "report.json", "transcript.json"])
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["target"], report["recipe"]) == ("pass", "coreml", "palette6")
    assert report["decode"]["cache_relative"] < report["decode"]["cache_bound"]
    transcript = json.loads((folder / "transcript.json").read_text())
    assert len(transcript["best"]) == len(transcript["tokens"]) == sum(transcript["chunks"])
    assert run("check", folder, "--model", "demo", "--max-mean-kld", "1e-6").code == 3
    shown = run("inspect", folder, "--tensors").out
    assert "43 constexpr_lut_to_dense" in shown
    assert "model_layers_0_mlp_down_proj lut" in shown
    assert run("coreml", "--model", "demo", "--quant", "palette6").code == 1
    assert run("coreml", "--model", "demo", "--quant", "palette6", "--no-check", "--force").code == 0
    assert names(folder) == FILES


def test_dry_run_and_refusals(run, tmp_path: Path) -> None:
    shown = run("coreml", "-m", "demo", "-q", "int4", "--channelwise", "--dry-run")
    assert shown.code == 0
    assert "writing takes about" in shown.err
    assert "int4_channel" in shown.out
    for arguments, told in [
        (("--group-size", "48"), "--group-size 48: use one of 16, 32, 64, 128, 256"),
        (("--quant", "q4_k_m"), "not a Core ML recipe"),
        (("--context-length", "4096"), "must be from 3 to the model's 2048"),
        (("--split-lm-head", "3"), "must be a multiple of 8"),
        (("--calibration", "x.txt"), "--calibration is for --method gptq and awq"),
        (("--size", "10K"), "--size 10K: the smallest formats take"),
        (("--bits-per-weight", "20"), "--bits-per-weight 20.0: the largest formats take"),
        (("--size", "1M", "--allocate"), "--allocate and --size exclude each other"),
    ]:
        refused = run("coreml", "-m", "demo", *arguments)
        assert (refused.code, told in refused.err) == (1, True), refused.err
    assert run("coreml", "-m", "demo", "--target", "iOS17").code == 2
    assert names(tmp_path) == []


def test_recipes_are_listed(run) -> None:
    assert "palette4" in run("quants", "coreml").out
