"""Putting a new folder in the place of an old one so that a kill at any step loses neither.

The old folder is moved aside to ``NAME.qwen3-export.replaced``, the new one gets its name, and the old one is removed.
A run that finds a folder moved aside knows that an earlier run was killed in between, and finishes or undoes its work:

    NAME is missing    killed before the new folder had its name: the old one is put back
    NAME is there      killed while the old one was being removed: it is removed, unless it holds foreign files
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from qwen3_export.errors import OutputError

__all__ = ["first_foreign", "left_over", "recover_folder", "swap_folder", "sync_folder"]

SUFFIX = ".qwen3-export.replaced"

# Written by operating systems into every folder that is looked at.
LITTER = (".DS_Store", "Thumbs.db", "desktop.ini")


def left_over(path: Path) -> Path:
    """Where the folder that is being replaced lies meanwhile."""
    return path.with_name(path.name + SUFFIX)


def first_foreign(folder: Path, is_ours: Callable[[str], bool]) -> str | None:
    """The first file in a folder, at any depth, that ``is_ours`` does not know by its path within the folder.

    Raises OSError for a folder that cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for parent, folders, files in os.walk(folder, onerror=fail):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in sorted([*files, *links]):
            relative = (Path(parent) / name).relative_to(folder).as_posix()
            if name not in LITTER and not is_ours(relative):
                return relative
    return None


def recover_folder(path: Path, is_ours: Callable[[str], bool]) -> None:
    """Finish or undo what a killed run left; the caller holds the lock.

    Raises OutputError if the folder that was moved aside holds foreign files, OSError if it cannot be moved.
    """
    old = left_over(path)
    if not old.is_dir() or old.is_symlink():
        return
    if _is_missing_or_empty(path):
        old.replace(path)
        return
    foreign = first_foreign(old, is_ours)
    if foreign is not None:
        raise OutputError(
            f"{old}: was left by an interrupted run, and holds {foreign}, which is no part of an export; "
            "move that folder away"
        )
    shutil.rmtree(old)


def swap_folder(partial: Path, path: Path, *, check: Callable[[Path], None]) -> None:
    """Put ``partial`` in the place of ``path`` and remove what was there.

    ``check`` is called with the old folder once it was moved aside, where nobody adds files to it by its name, and
    raises if it must stay. Raises OSError if a folder cannot be moved.
    """
    if _is_missing_or_empty(path):
        partial.replace(path)
        _sync(path.parent)
        return
    old = left_over(path)
    path.replace(old)
    try:
        check(old)
        partial.replace(path)
    except BaseException:
        if not path.exists():
            old.replace(path)
        raise
    _sync(path.parent)
    try:
        shutil.rmtree(old)
    except OSError as error:
        raise OutputError(
            f"{path}: is written, but the folder it replaced cannot be removed ({error.strerror}); remove {old.name}"
        ) from error


def sync_folder(folder: Path) -> None:
    """Make a folder and all that is in it durable: after a power cut it is there as it is now."""
    for parent, _, files in os.walk(folder):
        for name in files:
            _sync(Path(parent) / name)
        _sync(Path(parent))


def _is_missing_or_empty(path: Path) -> bool:
    return not path.exists() or next(path.iterdir(), None) is None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
