"""qwen3-export onnx, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import write_model

pytest.importorskip("onnx_ir")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


FILES = [
    "chat_template.jinja", "genai_config.json", "model.onnx", "model.onnx.data", "tokenizer.json",
    "tokenizer_config.json",
]  # fmt: skip


def test_a_folder_and_its_report(run, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    outcome = run("onnx", "--model", "demo", "--quant", "int4")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path) == ["demo-onnx-int4"]
    folder = tmp_path / "demo-onnx-int4"
    assert names(folder) == sorted([*FILES, "report.json"])
    report = json.loads((folder / "report.json").read_text())
    assert (report["verdict"], report["target"]) == ("pass", "onnx")
    assert outcome.out.startswith("wrote demo-onnx-int4 (6.07 MB of weights)")
    assert run("check", folder, "--model", "demo", "--max-mean-kld", "1").code == 0
    assert run("check", folder, "--model", "demo", "--max-mean-kld", "1e-6").code == 3
    shown = run("inspect", folder, "--tensors").out
    assert "31 MatMulNBits" in shown
    assert "model.layers.0.self_attn.qkv_proj.weight_codes" in shown


def test_a_solved_export_says_so(run, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "ein Ordner ü"
    outcome = run(
        "onnx", "-m", "demo", "-q", "q4", "--method", "gptq", "--calibration", text, "--sequence-length", "64",
        "--block-size", "128", "--asymmetric", "--no-check", "-o", out,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "forecast: about" in outcome.err
    assert names(tmp_path) == [out.name]
    shown = run("inspect", out, "--tensors").out
    assert "method     gptq" in shown or "gptq" in shown
    assert "output error" in shown


def test_what_is_there_is_kept(run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    arguments = ("onnx", "-m", "demo", "--no-check", "-o", folder)
    assert "exists already and is not empty" in run(*arguments).err
    assert "holds thesis.txt, which is no part of an export" in run(*arguments, "--force").err
    assert names(folder) == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    assert run(*arguments).code == 0
    assert run(*arguments, "--quant", "fp16", "--force").code == 0
    assert names(folder) == FILES
    file = tmp_path / "file"
    file.write_text("x")
    assert "a file; give the name of the folder" in run(*arguments[:-1], file).err
    assert "is a file, where a folder must be" in run(*arguments[:-1], file / "such").err
    assert names(tmp_path) == ["file", "mine"]


def test_folders_above_are_created(run, tmp_path: Path) -> None:
    out = tmp_path / "web" / "models" / "demo"
    outcome = run(
        "onnx", "-m", "demo", "--flavour", "transformers.js", "--context-length", "512", "--no-check", "-o", out
    )
    assert outcome.code == 0, outcome.err
    assert names(out / "onnx") == ["model_q4.onnx", "model_q4.onnx_data"]
    refused = run("onnx", "-m", "demo", "--context-length", "5000")
    assert refused.code == 1
    assert "--context-length 5000: the model's context ends at 2,048 tokens" in refused.err


def test_old_releases_are_told(run, tmp_path: Path) -> None:
    arguments = ("onnx", "-m", "demo", "--flavour", "transformers.js", "--no-check")
    told = "needs transformers.js 4.0 or newer; older releases lack MatMulNBits for 8 bits"
    assert told in run(*arguments, "--quant", "int8", "-o", tmp_path / "int8").err
    assert "transformers.js 4" not in run(*arguments, "--quant", "int4", "-o", tmp_path / "int4").err
    shown = run("lint", tmp_path / "int8", "-m", "demo")
    assert shown.code == 0
    assert told in shown.out + shown.err


def test_dry_run_and_refusals(run, tmp_path: Path) -> None:
    shown = run("onnx", "-m", "demo", "-q", "int4", "--dry-run")
    assert shown.code == 0
    assert "[8192, 8, 16]" in shown.out
    for arguments, told in [
        (("--block-size", "48"), "--group-size 48: use one of 16, 32, 64, 128, 256"),
        (("--quant", "q4_k_m"), "not an ONNX recipe"),
        (("--accuracy-level", "9"), "--accuracy-level 9: use one of 0, 1, 2, 3, 4"),
        (("--calibration", "x.txt"), "--calibration is for --method gptq and awq"),
    ]:
        refused = run("onnx", "-m", "demo", *arguments)
        assert refused.code == 1
        assert told in refused.err
    assert names(tmp_path) == []


def test_recipes_are_listed(run) -> None:
    shown = run("quants", "onnx").out
    assert shown.splitlines()[0].startswith("recipe")
    assert "int4       5.02    6.07 MB" in shown
    oldest = {line.split()[0]: line.rpartition("(")[2] for line in shown.splitlines()[1:]}
    assert oldest["int4"] == "onnxruntime 1.23, transformers.js 3.8)"
    assert oldest["int8"] == oldest["int4_int8"] == "onnxruntime 1.23, transformers.js 4.0)"


def test_formats_where_they_count(run, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = write_model(tmp_path / "m", num_hidden_layers=1)
    options = ("onnx", "--model", model, "--calibration", text, "--sequence-length", "64", "--samples", "16")
    outcome = run(*options, "--allocate", "--save-allocation", "choice.json", "-o", "a")
    assert outcome.code == 0, outcome.err
    assert "formats: chosen by what they cost" in outcome.out
    assert "needs onnxruntime 1.24" in outcome.err
    assert "allocation" in run("inspect", "a").out
    assert json.loads(Path("a/report.json").read_text())["allocation"]["measured"] > 0
    again = run("onnx", "-m", model, "--allocation", "choice.json", "--no-check", "-o", "b")
    assert again.code == 0, again.err
    assert Path("b/model.onnx.data").read_bytes() == Path("a/model.onnx.data").read_bytes()
    for arguments, told in (
        (("--size", "10K"), "--size 10K: the smallest formats take"),
        (("--bits-per-weight", "20"), "--bits-per-weight 20.0: the largest formats take"),
        (("--size", "1M", "--allocate"), "--allocate and --size exclude each other"),
        (("--allocation", "a/report.json"), "--allocation"),
    ):
        refused = run("onnx", "-m", model, *arguments, "-o", "c")
        assert refused.code == 1
        assert told in refused.err
        assert not Path("c").exists()
