"""How long work tells what it is doing: remarks, and bars that fill."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

__all__ = ["SILENT", "Advance", "Progress", "percent"]

Advance = Callable[[int], None]


class Progress(Protocol):
    """Somebody who is told."""

    def say(self, text: str) -> None:
        """One remark."""
        ...

    def bar(self, title: str, total: int) -> AbstractContextManager[Advance]:
        """A function that is called with the amount of each step, ``total`` in all."""
        ...


def percent(advance: Advance) -> Callable[[int, int], None]:
    """Fill a bar of 100 by what is called with the steps that are done, and all steps."""
    told = 0

    def tell(done: int, total: int) -> None:
        nonlocal told
        advance(100 * done // total - told)
        told = 100 * done // total

    return tell


class _Silent:
    """Tells nobody: the default of the Python API."""

    def say(self, text: str) -> None:
        pass

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:  # noqa: ARG002 (a bar that nobody sees)
        yield lambda _amount: None


SILENT: Progress = _Silent()
