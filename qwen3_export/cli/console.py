"""What a person sees while a command works: progress and plain remarks, all on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from qwen3_export.cli.wording import as_options
from qwen3_export.files.shown import escaped

__all__ = ["CONSOLE", "progress", "say", "show"]

SECONDS_BETWEEN_LINES = 5.0


class _Console:
    """Standard error, as the library's functions are told of it."""

    def say(self, text: str) -> None:
        say(as_options(text))

    def bar(self, title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return progress(title, total)


CONSOLE = _Console()


def say(text: str) -> None:
    """One remark on standard error, without characters that act on a terminal."""
    print(escaped(text), file=sys.stderr, flush=True)


def show(text: str, *, end: str = "\n") -> None:
    """A result on standard output, without characters that act on a terminal: names come from files of others."""
    print(escaped(text), end=end)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told of each step's amount: a bar on a terminal, a line now and then elsewhere."""
    if sys.stderr.isatty():
        with _bar(title, total) as advance:
            yield advance
    else:
        yield _lines(title, total)


@contextmanager
def _bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda amount: bar.advance(task, amount)


def _lines(title: str, total: int) -> Callable[[int], None]:
    done, last = 0, time.monotonic()

    def advance(amount: int) -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            say(f"{title}: {100 * done / total:.0f} %")

    return advance
