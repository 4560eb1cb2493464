"""Names, metadata, templates and replies of others do not act on a terminal, and come through a pipe as they are."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from models import write_model

from qwen3_export.cli.console import say, show
from qwen3_export.cli.replies import ReplyWriter
from qwen3_export.generation.generate import Step
from qwen3_export.generation.thinking import Place
from qwen3_export.targets.gguf.container import MetaType, MetaValue, aligned, lay_out, serialize_header

EVIL = "\x1b[2J\x1b]0;owned\x07\u202eexe.txt\x9b1m\rok"
TAMED = r"\x1b[2J\x1b]0;owned\x07\u202eexe.txt\x9b1m\rok"
ACTIVE = "\x1b\x07\x9b\r\u202e"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_reply_on_a_terminal_and_through_a_pipe() -> None:
    for out, expected in ((Terminal(), f"{TAMED}\n"), (io.StringIO(), f"{EVIL}\n")):
        writer = ReplyWriter(out, {1: EVIL.encode()}.__getitem__)
        writer.add(Step(1, Place.ANSWER))
        writer.end()
        assert out.getvalue() == expected


def test_a_terminal_without_colours_is_one_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    writer = ReplyWriter(out, {1: b"\x1b", 2: b"[2J"}.__getitem__)
    for token in (1, 2):
        writer.add(Step(token, Place.ANSWER))
    writer.end()
    assert out.getvalue() == "\\x1b[2J\n"


def test_remarks_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    say(f"{EVIL}\nmore")
    show(f"{EVIL}\nmore")
    found = capsys.readouterr()
    assert found.err == found.out == f"{TAMED}\nmore\n"


@pytest.fixture
def evil_gguf(tmp_path: Path) -> Path:
    infos = lay_out([(f"{EVIL}\nfake.weight", (4,), 0, 16)])
    metadata = {
        "general.name": MetaValue(MetaType.STRING, f"{EVIL}\nfake line"),
        "general.tags": MetaValue(MetaType.STRING, [EVIL], is_array=True),
        "tokenizer.chat_template": MetaValue(MetaType.STRING, f"{EVIL}\n{{{{ messages }}}}"),
    }
    path = tmp_path / "evil.gguf"
    path.write_bytes(serialize_header(metadata, infos) + bytes(aligned(16)))
    return path


def test_inspect_shows_what_a_file_says_without_doing_it(evil_gguf: Path, run) -> None:
    outcome = run("inspect", evil_gguf, "--tensors")
    assert outcome.code == 0, outcome.err
    assert f"{TAMED}\\nfake line" in outcome.out
    assert f"{TAMED}\\nfake.weight" in outcome.out
    assert not set(outcome.out) & set(ACTIVE)
    assert not [line for line in outcome.out.splitlines() if line.startswith("fake")]


def test_a_template_is_exact_in_a_pipe_alone(evil_gguf: Path, run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"{EVIL}\n{{{{ messages }}}}\n" in run("inspect", evil_gguf, "--template").out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    shown = run("inspect", evil_gguf, "--template").out
    assert f"{TAMED}\n{{{{ messages }}}}\n" in shown
    assert not set(shown) & set(ACTIVE)


def test_errors_are_one_line_whatever_a_name_holds(run, tmp_path: Path) -> None:
    folder = write_model(tmp_path / f"a{EVIL}\nb".replace("/", ""), "tied")
    (folder / "model.safetensors").write_bytes(b"x")
    for arguments in (("inspect", folder), ("check", f"{EVIL}\n.gguf", "--model", "demo"), ("inspect", f"{EVIL}\n")):
        outcome = run(*arguments)
        assert outcome.code == 1
        assert outcome.err.count("\n") == 1
        assert not set(outcome.err) & set(ACTIVE)


def test_a_traceback_is_tamed_as_well(run) -> None:
    outcome = run("--debug", "inspect", f"{EVIL}.gguf")
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert not set(outcome.err) & set(ACTIVE)
