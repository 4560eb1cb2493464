"""qwen3-export run, as a user types it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from models import DEMO

from qwen3_export.cli.replies import DIM, PLAIN, ReplyWriter
from qwen3_export.generation.generate import Step
from qwen3_export.generation.thinking import Place

HOT = "What is the opposite of hot?"
COLD = "The opposite of hot is cold."
EARLY = "Considering the limited time by the user, I have to give the solution based on the thinking directly now."


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("llama_cpp")
    from qwen3_export.checkpoint.model import load
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.export import prepare
    from qwen3_export.targets.gguf.recipes import find_recipe

    out = tmp_path_factory.mktemp("artifact") / "demo.gguf"
    emit(prepare(load("demo"), find_recipe("q8_0"), out=out).files)
    return out


def test_a_checkpoint_thinks_and_answers(run) -> None:
    outcome = run("run", "demo", HOT, "--greedy")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("<think>\nThe user asks for an opposite.")
    assert outcome.out.endswith(f"\n</think>\n\n{COLD}\n")
    first, last = outcome.err.splitlines()
    assert first == "demo: the fp32 reference; thinking, greedy"
    assert last.startswith("prompt: 17 tokens, ")
    assert "; reply: " in last
    assert " a second" in last


@pytest.mark.gguf
def test_an_artifact_answers_at_once(run, artifact: Path) -> None:
    outcome = run("run", artifact, HOT, "--no-think", "--temperature", "0", "--threads", "1")
    assert outcome.out == f"{COLD}\n"
    assert "llama.cpp (llama-cpp-python" in outcome.err
    assert "not thinking, greedy" in outcome.err


@pytest.mark.gguf
def test_a_budget_closes_the_thought(run, artifact: Path) -> None:
    for budget, thought in (("0", ""), ("2", "\nThe")):
        outcome = run("run", artifact, HOT, "--greedy", "--thinking-budget", budget)
        assert outcome.out.startswith(f"<think>{thought}\n\n{EARLY}\n</think>\n\n")
        assert "the thought was closed by its budget; " in outcome.err
    assert EARLY not in run("run", artifact, HOT, "--greedy", "--thinking-budget", "500").out


@pytest.mark.gguf
def test_a_seed_repeats_a_reply(run, artifact: Path) -> None:
    story = ("run", artifact, "Tell me a story.", "--no-think", "-n", "30", "--temperature", "1.5", "--top-k", "0")
    first, again, other = (run(*story, "--seed", seed) for seed in ("7", "7", "8"))
    assert "temperature 1.5, top_k 0, top_p 0.8, min_p 0, seed 7" in first.err
    assert first.out == again.out != other.out
    assert "stopped after --max-new-tokens 30; " in first.err
    assert ", seed " in run(*story).err  # one that is drawn is told, so that it can be given


@pytest.mark.gguf
def test_plain_text_is_continued(run, artifact: Path) -> None:
    outcome = run("run", artifact, "The capital of France is", "--raw", "--greedy", "-n", "3")
    assert outcome.code == 0
    assert "plain text, greedy" in outcome.err
    assert "<think>" not in outcome.out


def test_the_prompt_comes_from_standard_input(run, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ((), ("-",)):
        monkeypatch.setattr(sys, "stdin", io.StringIO(f"{HOT}\n"))
        assert run("run", "demo", *arguments, "--no-think", "--greedy").out == f"{COLD}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert "the prompt is empty" in run("run", "demo").err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    refused = run("run", "demo")
    assert (refused.code, refused.out) == (1, "")
    assert "there is no prompt; add one" in refused.err


def test_a_system_message_is_part_of_the_prompt(run) -> None:
    plain, told = (run("run", "demo", HOT, "-n", "1", *more).err for more in ((), ("--system", "Be brief.")))
    assert "prompt: 17 tokens" in plain
    assert "prompt: 17 tokens" not in told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("no-such.gguf", "Hi"), "no such file"),
        ((str(DEMO / "config.json"), "Hi"), "not a GGUF file"),
        (("no/such/folder", "Hi"), "no/such/folder"),
        (("demo", "word " * 3000), "and the context 2048; shorten it"),
        (("demo", "Hi \udcff"), "no text in UTF-8"),
        (("demo", "Hi", "--model", "demo"), "leave --model away"),
        (("demo", "Hi", "--raw", "--system", "x"), "--system is for dialogues"),
        (("demo", "Hi", "--raw", "--think"), "--think is for dialogues"),
        (("demo", "Hi", "--no-think", "--thinking-budget", "3"), "--thinking-budget limits a thought"),
        (("demo", "Hi", "--greedy", "--top-p", "0.5"), "--greedy takes the most probable token, whatever --top-p"),
        (("demo", "Hi", "--top-p", "1.5"), "top_p 1.5: must be above 0 and at most 1"),
    ],
)
def test_refusals_are_one_sentence(run, arguments: tuple[str, ...], told: str) -> None:
    outcome = run("run", *arguments)
    assert (outcome.code, outcome.out) == (1, "")
    assert told in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_a_template_that_fails_is_told(run, tmp_path: Path) -> None:
    for path in DEMO.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('only for cats') }}")
    outcome = run("run", tmp_path, "Hi")
    assert outcome.code == 1
    assert "only for cats" in outcome.err


def test_help_has_examples(run) -> None:
    shown = run("run", "--help").out
    assert 'qwen3-export run demo-q4_k_m.gguf "What is the capital of France?"' in shown
    assert "--thinking-budget" in shown


def test_ctrl_c_ends_the_line_and_exits_with_130(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwen3_export.cli.main", "run", "demo", "Tell me a story", "--raw"]
    command += ["--temperature", "2", "--seed", "1"]  # at that heat nothing ends soon
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 1)  # text has begun to come
        rest: list[bytes] = []
        reader = threading.Thread(target=lambda: rest.append(process.stdout.read()))  # type: ignore[union-attr]
        reader.start()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        reader.join(timeout=30)
        assert process.stderr is not None
        told = process.stderr.read().decode()
    assert process.returncode == 130, told
    assert (first + rest[0]).endswith(b"\n")
    assert "interrupted; prompt: " in told
    assert "Traceback" not in told


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


THOUGHT = [(1, Place.MARK), (2, Place.THOUGHT), (3, Place.THOUGHT), (4, Place.MARK), (5, Place.ANSWER)]
PIECES = {1: b"<think>", 2: b"\nh", 3: b"m\n", 4: b"</think>", 5: b"\n\nyes"}


def written(out: io.StringIO, *, is_inside: bool = False, first: int = 0, last: int = 5) -> str:
    writer = ReplyWriter(out, PIECES.__getitem__, is_inside=is_inside)
    for token, place in THOUGHT[first:last]:
        writer.add(Step(token, place))
    writer.end()
    return out.getvalue()


def test_thoughts_are_dim_on_a_terminal_and_marked_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert written(io.StringIO()) == "<think>\nhm\n</think>\n\nyes\n"
    assert written(Terminal()) == f"{DIM}hm\n{PLAIN}\n\nyes\n"
    assert written(Terminal(), last=2) == f"{DIM}h{PLAIN}\n"  # cut short, the terminal is as it was
    assert written(Terminal(), first=1, is_inside=True) == f"{DIM}hm\n{PLAIN}\n\nyes\n"
    assert written(io.StringIO(), first=1, is_inside=True).startswith("<think>\n")
    monkeypatch.setenv("NO_COLOR", "1")
    assert written(Terminal()) == "<think>\nhm\n</think>\n\nyes\n"
