"""qwen3-export gguf, as a user types it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gguf
import pytest
from models import DEMO, write_model


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_main_job_writes_file_and_report(run, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    outcome = run("gguf", "--model", "demo", "--quant", "q4_k_m")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path) == ["demo-q4_k_m.gguf", "demo-q4_k_m.report.json"]
    report = json.loads((tmp_path / "demo-q4_k_m.report.json").read_text())
    assert report["verdict"] == "pass"
    assert report["conversion"]["mean_kld"] < 1e-9
    assert "verdict: pass" in outcome.out
    assert "llama-cli -m demo-q4_k_m.gguf" in outcome.out


def test_results_go_to_standard_output_and_remarks_to_standard_error(run, tmp_path: Path) -> None:
    outcome = run("gguf", "--model", "demo", "--quant", "q8_0", "--no-check")
    assert outcome.out.startswith("wrote demo-q8_0.gguf (8.81 MB)")
    assert "parameters to q8_0" in outcome.err
    assert names(tmp_path) == ["demo-q8_0.gguf"]


def test_dry_run_writes_nothing(run, tmp_path: Path) -> None:
    outcome = run("gguf", "--model", "demo", "--quant", "Q4_K_M", "--dry-run", "--tensor-type", "attn_v=q8_0")
    assert outcome.code == 0
    assert "Q8_0     [256, 256]             blk.0.attn_v.weight" in outcome.out
    assert names(tmp_path) == []


def test_overrides_and_modelfile(run, tmp_path: Path) -> None:
    out = tmp_path / "ein Ordner ü" / "modèle.gguf"
    out.parent.mkdir()
    outcome = run("gguf", "-m", DEMO, "-q", "q4_0", "--output-type", "q8_0", "--modelfile", "--no-check", "-o", out)
    assert outcome.code == 0, outcome.err
    assert names(out.parent) == ["Modelfile", "modèle.gguf"]
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(out).tensors}
    assert types["token_embd.weight"] == "Q8_0"
    assert types["blk.3.ffn_up.weight"] == "Q4_0"
    modelfile = (out.parent / "Modelfile").read_text()
    assert modelfile.startswith("FROM ./modèle.gguf\n")
    assert "TEMPLATE" not in modelfile  # Ollama goes by the one in the file
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"' in modelfile
    assert "PARAMETER num_ctx 2048" in modelfile


def test_an_existing_file_is_kept_unless_forced(run, tmp_path: Path) -> None:
    (tmp_path / "demo-f16.gguf").write_bytes(b"GGUF of old")
    arguments = ("gguf", "--model", "demo", "--quant", "f16", "--no-check")
    refused = run(*arguments)
    assert (refused.code, (tmp_path / "demo-f16.gguf").read_bytes()) == (1, b"GGUF of old")
    assert "exists already" in refused.err
    assert run(*arguments, "--force").code == 0
    assert (tmp_path / "demo-f16.gguf").stat().st_size > 1e7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nothing-here"], "neither a folder nor a model name"),
        (["--model", "demo", "--quant", "q9_9"], "q4_k_m"),
        (["--model", "demo", "--tensor-type", "attn_v"], "attn_v"),
        (["--model", "demo", "--tensor-type", "attn_w=q6_k"], "attn_w"),
        (["--model", "demo", "--tensor-type", "attn_v=q7"], "q7"),
        (["--model", "demo", "--split-max-size", "much"], "not a size"),
        (["--model", "demo", "--split-max-size", "1K"], "allow larger parts"),
        (["--model", "demo", "--imatrix", "missing.gguf"], "missing.gguf"),
        (["--model", "demo", "--imatrix", str(DEMO / "config.json")], "config.json"),
        (["--model", "demo", "--out", "."], "a folder"),
        (["--model", "demo", "--out", "no/where.gguf"], "create it first"),
        (["--model", str(DEMO), "--out", str(DEMO / "model.safetensors"), "--force"], "is being read"),
        (["--model", "demo", "--quant", "q2_k_s"], "importance matrix"),
    ],
)
def test_refused_in_one_sentence(arguments: list[str], words: str, run, tmp_path: Path) -> None:
    outcome = run("gguf", "--no-check", *arguments)
    assert outcome.code == 1
    assert words in outcome.err
    sentence = outcome.err.splitlines()[-1]
    assert sentence.startswith("qwen3-export: ")
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
    assert names(tmp_path) == []


def test_usage_errors_exit_with_2(run) -> None:
    assert run("gguf").code == 2
    assert run("gguf", "--model", "demo", "--nonsense").code == 2
    assert run("gguf", "--model", "demo", "--threads", "0").code == 2


def test_a_damaged_checkpoint_leaves_nothing(run, tmp_path: Path, tmp_path_factory) -> None:
    folder = write_model(tmp_path_factory.mktemp("damaged") / "m", "sharded")
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-1000])
    outcome = run("gguf", "--model", folder, "--no-check")
    assert outcome.code == 1
    assert "cut short" in outcome.err
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_half_way_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    """Writing is slowed down from outside, so that the signal arrives in the middle of it."""
    slow = (
        "import os, time\n"
        "pwrite = os.pwrite\n"
        "os.pwrite = lambda *a: (time.sleep(0.5), pwrite(*a))[1]\n"
        "from qwen3_export.cli.main import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", slow, "gguf", "--model", "demo", "--quant", "q8_0", "--no-check"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env={**os.environ})
    deadline = time.monotonic() + 60
    while "demo-q8_0.gguf.qwen3-export.partial" not in names(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert names(tmp_path) == ["demo-q8_0.gguf.qwen3-export.partial"]
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1] == "qwen3-export: interrupted; no unfinished file was left behind"
    assert names(tmp_path) == []


def test_balanced_keys_are_the_same_function(run, text: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    outcome = run("gguf", "-m", "demo", "-q", "q8_0", "--balance-keys", "--calibration", text)
    assert outcome.code == 0, outcome.err
    reader = gguf.GGUFReader(tmp_path / "demo-q8_0.gguf")
    places = reader.fields["qwen3_export.scales.places"].contents()
    assert places == [f"k_norm.{layer}" for layer in range(6)]
    report = json.loads((tmp_path / "demo-q8_0.report.json").read_text())
    assert report["verdict"] == "pass"
    assert report["quantization"]["mean_kld"] < 1e-4
    refused = run("gguf", "-m", "demo", "-q", "q8_0", "--calibration", text, "--dry-run")
    assert "--calibration is for" in refused.err


def test_formats_where_they_count(run, text: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "m", num_hidden_layers=1)
    options = ("gguf", "--model", model, "--calibration", text, "--sequence-length", "64", "--samples", "16")
    outcome = run(*options, "--allocate", "--quant", "q3_k_m", "--save-allocation", "choice.json", "-o", "a.gguf")
    assert outcome.code == 0, outcome.err
    assert "formats: chosen by what they cost" in outcome.out
    assert "qwen3_export.allocation" in run("inspect", "a.gguf").out
    assert json.loads(Path("a.report.json").read_text())["allocation"]["measured"] > 0
    again = run("gguf", "-m", model, "-q", "q3_k_m", "--allocation", "choice.json", "--no-check", "-o", "b.gguf")
    assert again.code == 0, again.err
    assert Path("b.gguf").stat().st_size == Path("a.gguf").stat().st_size
    for arguments, told in (
        (("--size", "10K"), "--size 10K: the smallest formats take"),
        (("--bits-per-weight", "20"), "--bits-per-weight 20.0: the largest formats take"),
        (("--size", "1M", "--allocate"), "--allocate and --size exclude each other"),
        (("--allocation", "a.report.json"), "--allocation"),
    ):
        refused = run("gguf", "-m", model, *arguments, "-o", "c.gguf")
        assert refused.code == 1
        assert told in refused.err
        assert not Path("c.gguf").exists()
