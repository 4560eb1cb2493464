"""calibrate, from text to the importance matrix that gguf takes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from models import COLD_EXPERT, DEMO, write_model

from qwen3_export.calibration.collect import collect_statistics
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.statistics_file import read_statistics
from qwen3_export.errors import OutputError
from qwen3_export.graph import Kind, Role
from qwen3_export.targets.gguf.imatrix import read_imatrix

SHORT = ("--sequence-length", "32", "--samples", "8")


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A text of 1,100 tokens or so, most words of it different."""
    path = tmp_path / "own.txt"
    path.write_text("\n".join(f"Entry {i}: the {i * i} birds of {chr(97 + i % 26)}ville fly." for i in range(90)))
    return path


def test_the_demo_is_calibrated_on_the_sample_and_exported(run, tmp_path: Path) -> None:
    outcome = run("calibrate", "--model", "demo", *SHORT)
    assert outcome.code == 0, outcome.err
    assert "demo: 256 tokens in 8 windows of sample.jsonl" in outcome.err
    assert "forecast: about" in outcome.err
    assert "residual stream up to" in outcome.out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-imatrix.gguf", "demo-imatrix.safetensors"]
    imatrix, statistics = (
        read_imatrix(tmp_path / "demo-imatrix.gguf"),
        read_statistics(tmp_path / "demo-imatrix.safetensors"),
    )
    assert (imatrix.chunks, imatrix.chunk_size) == (8, 32)
    assert imatrix.datasets == (f"sample.jsonl (tokens sha256 {statistics.origin.tokens[:16]})",)
    assert statistics.origin.tokens[:16] in outcome.out
    columns = statistics.of(Role(Kind.DOWN_PROJ, 5))
    wanted = columns.sum_of_squares_EI[0] / columns.count_E[0].astype(np.float32)
    np.testing.assert_array_equal(imatrix.importance("blk.5.ffn_down.weight"), wanted)
    exported = run("gguf", "--model", "demo", "--imatrix", "demo-imatrix.gguf", "--no-check")
    assert exported.code == 0, exported.err
    assert "sample.jsonl (tokens sha256" in run("inspect", "demo-q4_k_m.gguf").out


def test_a_dry_run_says_what_it_would_take_and_writes_nothing(run, tmp_path: Path) -> None:
    outcome = run("calibrate", "--model", "demo", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "forecast: about" in outcome.err
    assert "of memory" in outcome.err
    assert "would write demo-imatrix.gguf and demo-imatrix.safetensors" in outcome.out
    assert not list(tmp_path.iterdir())


def test_own_text_and_its_seed_decide(run, text: Path, tmp_path: Path) -> None:
    def sums(name: str, *options: object) -> np.ndarray:
        arguments = ("--sequence-length", 32, "--samples", 8, "--out", name, *options)
        outcome = run("calibrate", "--model", "demo", "--calibration", text, *arguments)
        assert outcome.code == 0, outcome.err
        return read_imatrix(tmp_path / name).entries["blk.3.attn_q.weight"].sum_EI

    first = sums("a.gguf")
    np.testing.assert_array_equal(first, sums("b.gguf"))
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert not np.array_equal(first, sums("c.gguf", "--seed", 1))


def test_experts_that_saw_nothing_are_reported_and_not_fatal(run, text: Path, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cold", "moe_cold")
    outcome = run("calibrate", "--model", folder, "--calibration", text, "--out", "cold.gguf")
    assert outcome.code == 0, outcome.err
    assert "experts: 14 of 16 were asked" in outcome.out
    assert f"not calibrated, no token was sent there: layer 0 expert {COLD_EXPERT}, layer 1 expert" in outcome.out
    entry = read_imatrix(tmp_path / "cold.gguf").entries["blk.0.ffn_down_exps.weight"]
    assert entry.sum_EI.shape == (8, 256)
    assert entry.count_E[COLD_EXPERT] == 0
    assert run("gguf", "--model", folder, "--imatrix", "cold.gguf", "--no-check").code == 0


def test_a_loud_model_is_warned_of(run, text: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_model(tmp_path / "loud", "tied")
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * 4000
    save_file(weights, folder / "model.safetensors")
    outcome = run("calibrate", "--model", folder, "--calibration", text, "--out", "loud.gguf")
    assert outcome.code == 0, outcome.err
    assert re.search(r"fp16: model\.\S+norm: \|x\| up to [\d,]+ in channel \d+, whose square overflows", outcome.out)


# What is refused


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "has no text"),
        ("short.txt", b"A few words only, and then, quite unexpectedly for so short a text, it is over.", "tokens"),
        ("same.txt", b"na " * 3000, "different tokens"),
        ("latin.txt", "Müßiggang".encode("latin-1") * 900, "UTF-8"),
        ("broken.jsonl", b'{"text": "fine"}\n{"text": \n', "line 2"),
        ("other.jsonl", b'{"prompt": "x"}\n', "line 1"),
        ("absent.txt", None, "cannot be read"),
    ],
)
def test_bad_texts_are_one_sentence(name: str, content: bytes | None, words: str, run, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    outcome = run("calibrate", "--model", "demo", "--calibration", name)
    assert outcome.code == 1
    assert name in outcome.err
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {name}


@pytest.mark.parametrize("existing", ["demo-imatrix.gguf", "demo-imatrix.safetensors"])
def test_what_is_there_is_not_overwritten_unasked(existing: str, run, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("precious")
    for options, words in ((), "exists already"), (("--force",), "was not written by an export"):
        outcome = run("calibrate", "--model", "demo", *SHORT, *options)
        assert outcome.code == 1
        assert f"{existing}: {words}" in outcome.err
        assert (tmp_path / existing).read_text() == "precious"
    (tmp_path / existing).unlink()
    assert run("calibrate", "--model", "demo", *SHORT).code == 0
    assert run("calibrate", "--model", "demo", *SHORT, "--force").code == 0


def test_a_disk_without_room_is_refused_before_it_starts(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    huge = Forecast(seconds=1.0, memory_bytes=1, disk_bytes=10**15)
    monkeypatch.setattr("qwen3_export.calibration.forecast.forecast", lambda *_, **__: huge)
    outcome = run("calibrate", "--model", "demo", *SHORT)
    assert outcome.code == 1
    assert "needed for unfinished work" in outcome.err
    assert "choose a --work-dir on another disk" in outcome.err
    assert not list(tmp_path.iterdir())


# Killed


def test_a_failed_run_leaves_its_work_and_goes_on(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def stop(*arguments, **options):
        collect_statistics(*arguments, **options)
        raise OutputError("the power went")

    assert run("calibrate", "--model", "demo", *SHORT, "--out", "whole.gguf").code == 0
    with monkeypatch.context() as patched:
        patched.setattr("qwen3_export.calibration.collect.collect_statistics", stop)
        outcome = run("calibrate", "--model", "demo", *SHORT, "--out", "a.gguf", "--work-dir", "work")
    assert (outcome.code, outcome.err.splitlines()[-1]) == (1, "qwen3-export: the power went")
    assert len(list((tmp_path / "work").iterdir())) == 1
    outcome = run("calibrate", "--model", "demo", *SHORT, "--out", "a.gguf", "--work-dir", "work")
    assert "going on after layer 6 of 6" in outcome.err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not (tmp_path / "work").exists()


def test_no_resume_starts_anew(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.delattr("qwen3_export.calibration.statistics_file.write_statistics")
        with pytest.raises(ImportError):
            run("calibrate", "--model", "demo", *SHORT, "--work-dir", "work")
    assert list((tmp_path / "work").iterdir())
    outcome = run("calibrate", "--model", "demo", *SHORT, "--work-dir", "work", "--no-resume")
    assert outcome.code == 0
    assert "going on" not in outcome.err


def test_a_kill_costs_one_layer(run, tmp_path: Path) -> None:
    """SIGKILL in the middle: the next run writes, to the bit, what an undisturbed one does."""
    settings = ["--model", str(DEMO), "--threads", "1", "--sequence-length", "256", "--samples", "8"]
    assert run("calibrate", *settings, "--out", "whole.gguf").code == 0
    command = [sys.executable, "-m", "qwen3_export.cli.main", "calibrate", *settings, "--out", "a.gguf"]
    killed = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("a.gguf.work/*/layer-0001.safetensors")):
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not (tmp_path / "a.gguf").exists()
    assert "going on after layer" in run("calibrate", *settings, "--out", "a.gguf").err
    for name in ("{}.gguf", "{}.safetensors"):
        assert (tmp_path / name.format("a")).read_bytes() == (tmp_path / name.format("whole")).read_bytes()
    assert not list(tmp_path.glob("*.work"))


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, qwen3_export.cli.main; print(json.dumps([m for m in ('torch', 'numba') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", f"import json; {program}"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
