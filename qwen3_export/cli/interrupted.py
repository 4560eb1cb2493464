"""Ctrl-C, or a polite kill, as one exception."""

from __future__ import annotations

import signal
from pathlib import Path

__all__ = ["Interrupted"]


class Interrupted(BaseException):
    """A signal that asks to stop; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number
        self.kept: Path | None = None

    def keeping(self, folder: Path) -> Interrupted:
        """The same, with the folder in which unfinished work is kept, if there is one."""
        self.kept = folder if folder.exists() else None
        return self

    @property
    def sentence(self) -> str:
        """What is told: what was left behind."""
        if self.kept is None:
            return "interrupted; no unfinished file was left behind"
        return f"interrupted; what was done so far is kept in {self.kept}, and the same command goes on from there"

    @property
    def exit_code(self) -> int:
        """What shells say of a process that a signal has ended."""
        return 128 + self.number
