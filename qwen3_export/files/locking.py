"""The partial file or folder beside an output, locked so that two runs never write the same one.

Its name says whose it is (``NAME.qwen3-export.partial``): whatever lies there was left by a run of this toolkit.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from qwen3_export.errors import OutputError

__all__ = ["is_still_at", "lock", "partial_path"]

SUFFIX = ".qwen3-export.partial"


def partial_path(path: Path) -> Path:
    """Where the file or folder ``path`` is written before it gets its name."""
    return path.with_name(path.name + SUFFIX)


def lock(path: Path, *, is_folder: bool) -> int:
    """Create and lock ``partial_path(path)``; returns an open descriptor, which holds the lock until it is closed.

    Raises OutputError if another run holds it, OSError if it cannot be created. File systems without locks (some
    network ones) are written to without.
    """
    partial = partial_path(path)
    while True:
        descriptor = _open(partial, is_folder=is_folder)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"{path}: another run is writing it; wait until that is done, or choose another name"
            ) from error
        except OSError:
            return descriptor
        # Another run may have renamed it between opening and locking: then it is that run's finished output.
        if is_still_at(descriptor, partial):
            return descriptor
        os.close(descriptor)


def is_still_at(descriptor: int, partial: Path) -> bool:
    """Whether the open file or folder still has this name."""
    try:
        there = partial.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(descriptor), there)


def _open(partial: Path, *, is_folder: bool) -> int:
    if not is_folder:
        return os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    while True:
        partial.mkdir(exist_ok=True)
        try:
            return os.open(partial, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:  # renamed by another run since
            continue
