"""A command whose process dies, as native runtimes die on damaged files, ends in one sentence."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the command forks on Linux only")

# What a command does in the guarded process, in place of opening an artifact.
PROGRAM = """
import os, signal, sys, time
from qwen3_export.cli.guard import guard
guard(sys.argv[1:])
{work}
"""


def start(work: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PROGRAM.format(work=work), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(work: str, *arguments: str) -> tuple[int, str, str]:
    with start(work, *arguments) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE"])
def test_a_crash_becomes_a_sentence(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(b"")
    die = f"signal.signal(signal.{name}, signal.SIG_DFL); os.kill(os.getpid(), signal.{name})"
    work = f"print('so far', flush=True); {die}"
    code, out, err = ended(work, "check", str(path), "-m", "demo")
    assert (code, out) == (1, "so far\n")
    assert err.startswith(f"qwen3-export: {path}: the process that read it crashed ({name})")
    assert len(err.splitlines()) == 1


def test_a_killed_one_is_said_to_want_memory(tmp_path: Path) -> None:
    code, _, err = ended("os.kill(os.getpid(), signal.SIGKILL)", "--debug", "lint", str(tmp_path))
    assert code == 1
    assert err.startswith(f"qwen3-export: {tmp_path}: ")
    assert "most likely for want of memory" in err


@pytest.mark.parametrize("code", [0, 1, 3])
def test_exit_codes_and_output_are_the_command_s_own(code: int) -> None:
    assert ended(f"print(7); sys.exit({code})", "run", "x") == (code, "7\n", "")


UNFORESEEN = """
from qwen3_export.cli import main
def app():
    raise {error}
main.app = app
main.main()
"""


def test_an_error_that_nobody_foresaw_is_told_in_a_sentence(tmp_path: Path) -> None:
    work = UNFORESEEN.format(error='ValueError("one\\ntwo")')
    code, out, err = ended(work, "check", str(tmp_path), "-m", "demo")
    assert (code, out) == (1, "")
    assert err.startswith(f"qwen3-export: {tmp_path}: reading it ended in ValueError (one two)")
    assert len(err.splitlines()) == 1
    code, _, err = ended(work, "calibrate", str(tmp_path))  # opens no artifact: the mistake is ours
    assert "Traceback" in err


def test_a_reader_that_has_gone_is_no_damage(tmp_path: Path) -> None:
    assert ended(UNFORESEEN.format(error="BrokenPipeError()"), "check", str(tmp_path))[2] == ""


def test_other_commands_stay_in_one_process() -> None:
    work = "print(os.getppid())"
    own = str(os.getpid())
    assert ended(work, "gguf", "-m", "demo")[1].strip() == own
    assert ended(work, "check", "--help")[1].strip() == own
    assert ended(work, "check", "x")[1].strip() != own


def test_a_signal_to_the_command_reaches_the_work() -> None:
    work = (
        "signal.signal(signal.SIGINT, lambda *_: (print('stopped', flush=True), os._exit(130)))\n"
        "print('ready', flush=True)\ntime.sleep(60)"
    )
    with start(work, "run", "x", "hello") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, "stopped\n")


def test_the_work_ends_where_the_command_is_killed() -> None:
    with start("print(os.getpid(), flush=True)\ntime.sleep(60)", "inspect", "x") as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        process.kill()
        process.wait()
    for _ in range(100):
        if not Path(f"/proc/{worker}").exists() or "Z" in Path(f"/proc/{worker}/stat").read_text().split()[2]:
            return
        time.sleep(0.1)
    pytest.fail("the work goes on")
