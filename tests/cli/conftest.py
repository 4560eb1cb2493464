"""The command line as a function: arguments in, exit code and both streams out."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qwen3_export.cli.main import main


@dataclass(frozen=True, kw_only=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd, tmp_path: Path) -> Iterator[Callable[..., Outcome]]:
    """Run ``qwen3-export`` in ``tmp_path`` with the given arguments."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("QWEN3_EXPORT_DEBUG", raising=False)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def call(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qwen3-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as ending:
            main()
        streams = capfd.readouterr()
        code = ending.value.code
        return Outcome(code=code if isinstance(code, int) else 0, out=streams.out, err=streams.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
