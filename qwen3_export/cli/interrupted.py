"""Ctrl-C, or a polite kill, as one exception."""

from __future__ import annotations

import signal

__all__ = ["Interrupted"]


class Interrupted(BaseException):
    """A signal that asks to stop; not an Exception, so that nothing on the way swallows it."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells say of a process that a signal has ended."""
        return 128 + self.number
