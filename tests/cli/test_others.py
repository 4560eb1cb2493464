"""check, inspect, quants, --help and --version."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from models import DEMO


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from qwen3_export.checkpoint.model import load
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.export import prepare
    from qwen3_export.targets.gguf.recipes import find_recipe

    out = tmp_path_factory.mktemp("artifact") / "demo.gguf"
    emit(prepare(load("demo"), find_recipe("q4_k_m"), out=out).files)
    return out


def test_check_passes_and_saves_reports(run, artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    outcome = run("check", artifact, "--model", "demo", "--json", "r.json", "--html", "r.html", "--junit", "r.xml")
    assert outcome.code == 0, outcome.err
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["verdict"] == "pass"
    assert document["command"] == f"qwen3-export check {artifact} --model demo"
    assert len(document["weight_errors"]) == 6 * 7 + 1
    means = [sum(point["count"] * point["mean_kld"] for point in points) for points in document["curves"].values()]
    expected = [document["positions"] * document[name]["mean_kld"] for name in document["curves"]]
    assert means == pytest.approx(expected)
    assert "<html" in (tmp_path / "r.html").read_text()
    assert 'failures="0"' in (tmp_path / "r.xml").read_text()


def test_a_gate_that_is_not_kept_exits_with_3(run, artifact: Path) -> None:
    pytest.importorskip("llama_cpp")
    outcome = run("check", artifact, "--model", "demo", "--max-mean-kld", "1e-6", "--junit", "r.xml")
    assert outcome.code == 3
    assert "verdict: fail" in outcome.out
    assert 'name="max_mean_kld"' in Path("r.xml").read_text()


def test_a_report_that_has_no_place_is_refused_before_anything_runs(run, artifact: Path) -> None:
    outcome = run("check", artifact, "--model", "demo", "--junit", "nowhere/r.xml")
    assert outcome.code == 1
    assert "there is no folder nowhere" in outcome.err
    assert "reading" not in outcome.err
    before = artifact.read_bytes()
    outcome = run("check", artifact, "--model", "demo", "--html", artifact)
    assert outcome.code == 1
    assert "would be overwritten" in outcome.err
    assert artifact.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "words"), [("nothing.gguf", "no such file"), (str(DEMO / "config.json"), "config.json")]
)
def test_check_refuses_what_is_no_gguf(path: str, words: str, run) -> None:
    outcome = run("check", path, "--model", "demo")
    assert outcome.code == 1
    assert words in outcome.err


def test_inspect_shows_checkpoints_and_files(run, artifact: Path) -> None:
    model = run("inspect", "demo", "--tensors").out
    assert "8.0M (8,000,256)" in model
    assert "8158 <|im_end|>, 8156 <|endoftext|>" in model
    assert "BF16   [512, 256]           model.layers.0.self_attn.q_proj" in model
    file = run("inspect", artifact, "--tensors", "--template").out
    assert "38 Q4_K, 25 F32, 5 Q6_K" in file
    assert "Q6_K   [8192, 256]            token_embd.weight" in file
    assert "add_generation_prompt" in file
    assert "qwen3_export.recipe" in file


def test_quants_lists_sizes_that_come_true(run, artifact: Path) -> None:
    listed = run("quants", "--model", "demo").out
    assert "q4_k_m     5.19    5.19 MB" in listed
    assert run("quants", "nowhere").code == 1


def test_version_and_help(run) -> None:
    assert run("--version").out.startswith("qwen3-export 0.")
    assert "qwen3-export gguf --model demo" in run("gguf", "--help").out


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, qwen3_export.cli.main; print([m for m in ('torch', 'numba', 'numpy') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_a_reader_that_goes_away_is_no_crash() -> None:
    command = f"{sys.executable} -m qwen3_export.cli.main inspect demo --tensors --template | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert "Traceback" not in result.stderr
