"""Independent jobs on a few threads, stopped cleanly by the first error or by Ctrl-C."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["default_threads", "run_jobs", "use_threads"]

Job = TypeVar("Job")


def default_threads() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """How many threads torch may use; all cores by default."""
    import torch

    torch.set_num_threads(threads or default_threads())


def run_jobs(work: Callable[[Job], None], jobs: Iterable[Job], *, threads: int) -> None:
    """Call ``work`` for each job on ``threads`` threads; jobs are drawn as threads become free.

    The work must release the GIL to gain anything.  The first exception stops the drawing of jobs and is raised
    once the jobs under way have ended; so does KeyboardInterrupt.
    """
    iterator, lock, stop = iter(jobs), threading.Lock(), threading.Event()

    def draw_and_work() -> None:
        while not stop.is_set():
            with lock:
                try:
                    job = next(iterator)
                except StopIteration:
                    return
            try:
                work(job)
            except BaseException:
                stop.set()
                raise

    with ThreadPoolExecutor(threads) as pool:
        futures = [pool.submit(draw_and_work) for _ in range(threads)]
        try:
            wait(futures)
        finally:
            stop.set()
    for future in futures:
        future.result()
