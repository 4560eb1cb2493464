"""Run independent jobs on a few threads, and stop cleanly at the first error or Ctrl-C."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

__all__ = ["default_threads", "run_jobs", "use_threads"]

Job = TypeVar("Job")


def default_threads() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_threads(threads: int | None) -> None:
    """Set how many threads torch uses; all cores by default."""
    import torch

    torch.set_num_threads(threads or default_threads())


def run_jobs(work: Callable[[Job], None], jobs: Iterable[Job], *, threads: int) -> None:
    """Call ``work`` for each job on ``threads`` threads; a thread takes the next job when it is free.

    Only work that releases the GIL becomes faster. After the first exception, or KeyboardInterrupt, no further job is
    taken, and the exception is raised once the running jobs have ended.
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
