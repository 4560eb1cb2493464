"""The export commands as one: options from the table of targets, older spellings, words of the command line."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen3_export.cli.wording import as_options, option_name
from qwen3_export.targets.options import option_texts
from qwen3_export.targets.registry import TARGETS


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_every_option_is_in_the_help(target, run) -> None:
    shown = run(target.name, "--help").out
    assert all(option_name(name) in shown for name, *_ in option_texts(target.options))
    assert not any(old in shown for *_, text in option_texts(target.options) for old in text.hidden)
    assert f"qwen3-export {target.name} --model demo" in shown
    assert "<" not in re.sub(r"<[^<>|]+(\|[^<>|]+)+>", "", shown.partition("Options:")[2])  # choices, but no types


@pytest.mark.onnx
def test_older_spellings_go_on_working(run) -> None:
    pytest.importorskip("onnx_ir")
    for words in (("--block-size", "64"), ("--block-size=64",), ("--group-size", "64")):
        shown = run("onnx", "-m", "demo", *words, "--dry-run")
        assert shown.code == 0, shown.err
        assert "[8192, 4, 32]" in shown.out
    assert run("quants", "--context", "128").err == run("quants", "--context-length", "128").err


def test_parameters_become_options() -> None:
    assert as_options("`group_size` 48: no") == "--group-size 48: no"
    assert as_options("replace it with `overwrite=True`") == "replace it with --force"
    assert as_options("leave `recipe` or `text` out, or `resume=False`") == (
        "leave --quant or --calibration out, or --no-resume"
    )
    assert as_options("a file called `Notes`") == "a file called `Notes`"


def test_a_choice_that_is_none_is_a_matter_of_usage(run) -> None:
    refused = run("onnx", "-m", "demo", "--flavour", "tflite")
    assert refused.code == 2
    assert "transformers.js" in refused.err


def test_an_interrupted_run_says_what_is_kept(text: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwen3_export.cli.main", "gguf", "--model", "demo", "--method", "gptq",
               "--calibration", str(text), "--sequence-length", "256", "--no-check", "--out", "a.gguf"]  # fmt: skip
    started = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("a.gguf.work/gptq-*/*")):
        assert started.poll() is None
        time.sleep(0.01)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate()
    assert started.returncode == 130
    assert told.splitlines()[-1] == (
        "qwen3-export: interrupted; what was done so far is kept in a.gguf.work, "
        "and the same command goes on from there"
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf.work"]
