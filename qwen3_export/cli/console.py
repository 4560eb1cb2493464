"""What a person sees while a command works: progress and plain remarks, all on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from qwen3_export.files.shown import escaped

__all__ = ["human_count", "human_duration", "human_size", "progress", "say", "show"]

SECONDS_BETWEEN_LINES = 5.0


def say(text: str) -> None:
    """One remark on standard error, without characters that act on a terminal."""
    print(escaped(text), file=sys.stderr, flush=True)


def show(text: str, *, end: str = "\n") -> None:
    """A result on standard output, without characters that act on a terminal: names come from files of others."""
    print(escaped(text), end=end)


def human_size(num_bytes: float) -> str:
    """``5.49 MB``, ``1.11 GB``: powers of 1000, as file managers and the hub count."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def human_count(count: float) -> str:
    """``8.0M``, ``1.7B`` parameters."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f}B"


def human_duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


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
