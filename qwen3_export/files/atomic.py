"""Output files and folders that appear under their final name only when they are whole.

A file is written beside its final place under ``NAME.partial``, made durable and then renamed, so an app or a
CI job never sees half of one.  Whatever ends the writing early (an error, Ctrl-C) removes the partial file; one
that a power cut left behind is overwritten by the next run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from qwen3_export.errors import OutputError

__all__ = [
    "check_output",
    "check_output_folder",
    "partial_file",
    "partial_files",
    "partial_folder",
    "write_all",
    "write_text",
]


def check_output(path: Path, *, force: bool, inputs: Iterable[Path] = ()) -> None:
    """Refuse an output path that cannot or should not be written, before any work is done.

    ``inputs`` are files that must not be overwritten, ``force`` or not.  Raises OutputError.
    """
    if path.is_dir():
        raise OutputError(f"{path}: a folder; --out takes the name of the file to write")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; create it first")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path}: not a regular file, and would be replaced by one; choose another --out")
    if path.exists() and any(path.samefile(source) for source in inputs):
        raise OutputError(f"{path}: belongs to the checkpoint that is being read; choose another --out")
    if path.exists() and not force:
        raise OutputError(f"{path}: exists already; --force overwrites it")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent}: not writable; check its permissions, or choose another --out")


@contextmanager
def partial_file(path: Path, *, num_bytes: int = 0) -> Iterator[int]:
    """A file descriptor to fill with ``num_bytes``; renamed to ``path`` when the block ends well.

    Space is reserved before anything is written where the file system can.  Raises OutputError when the disk
    is or becomes full, or another run is writing the same file.
    """
    with partial_files([(path, num_bytes)]) as descriptors:
        yield descriptors[0]


@contextmanager
def partial_files(files: list[tuple[Path, int]]) -> Iterator[list[int]]:
    """Several files that appear together, or not at all; see ``partial_file``."""
    with ExitStack() as stack:
        descriptors = [stack.enter_context(_opened_partial(path, num_bytes)) for path, num_bytes in files]
        try:
            yield descriptors
            for descriptor in descriptors:
                os.fsync(descriptor)
        except OSError as error:
            raise _as_output_error(files[0][0], error) from error
        for path, _ in files:
            _partial(path).replace(path)


def check_output_folder(
    path: Path, *, force: bool, is_ours: Callable[[str], bool], inputs: Iterable[Path] = ()
) -> None:
    """Refuse an output folder that cannot or should not be written, before any work is done.

    A folder with something in it is replaced only with ``force``, and only where ``is_ours`` knows every name in it:
    a folder of somebody's other files is never removed.  ``inputs`` are files that must stay.  Raises OutputError.
    """
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: a file; --out takes the name of the folder to write")
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent}: not writable; check its permissions, or choose another --out")
    if not path.exists():
        return
    if any(source.resolve().is_relative_to(path.resolve()) for source in inputs):
        raise OutputError(f"{path}: holds the checkpoint that is being read; choose another --out")
    names = sorted(entry.name for entry in path.iterdir())
    if names and not force:
        raise OutputError(f"{path}: exists already and is not empty; --force replaces it")
    foreign = [name for name in names if not is_ours(name)]
    if foreign:
        raise OutputError(f"{path}: holds {foreign[0]}, which is no part of an export; choose another --out")


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` to fill; it takes the place of ``path`` when the block ends well.

    Raises OutputError when the disk is or becomes full, or another run is writing the same folder.
    """
    partial = _partial(path)
    descriptor = None
    try:
        partial.mkdir(exist_ok=True)
        descriptor = os.open(partial, os.O_RDONLY)
        _lock(descriptor, path)
    except OSError as error:
        raise _as_output_error(path, error) from error
    except OutputError:
        if descriptor is not None:
            os.close(descriptor)
        raise
    try:
        for left in partial.iterdir():  # by a power cut
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield partial
        _replace_folder(partial, path)
    except OSError as error:
        raise _as_output_error(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _replace_folder(partial: Path, path: Path) -> None:
    """Put ``partial`` in the place of ``path``; what was there goes last."""
    if not path.exists():
        partial.replace(path)
        return
    old = path.with_name(f"{path.name}.replaced")
    path.replace(old)
    partial.replace(path)
    shutil.rmtree(old)


def write_text(path: Path, text: str) -> None:
    """A small text file, atomically."""
    with partial_file(path) as descriptor:
        write_all(descriptor, text.encode("utf-8"))


def write_all(descriptor: int, data: bytes) -> None:
    """All of ``data`` where the descriptor stands; the system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


@contextmanager
def _opened_partial(path: Path, num_bytes: int) -> Iterator[int]:
    """An open, locked and reserved partial file, which is removed unless it has been renamed meanwhile."""
    partial = _partial(path)
    try:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise _as_output_error(path, error) from error
    try:
        _lock(descriptor, path)
    except OutputError:
        os.close(descriptor)
        raise
    try:
        _reserve(descriptor, path, num_bytes)
        yield descriptor
    finally:
        partial.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OutputError(f"{path}: another run is writing it; wait for that, or choose another --out") from error


def _reserve(descriptor: int, path: Path, num_bytes: int) -> None:
    try:
        os.ftruncate(descriptor, 0)
        free = shutil.disk_usage(path.parent).free
        if num_bytes > free:
            raise OSError(errno.ENOSPC, f"{num_bytes:,} bytes are needed and {free:,} are free")
        if num_bytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, num_bytes)
        elif num_bytes:
            os.ftruncate(descriptor, num_bytes)
    except OSError as error:
        raise _as_output_error(path, error) from error


def _as_output_error(path: Path, error: OSError) -> OutputError:
    if error.errno == errno.ENOSPC:
        return OutputError(f"{path}: the disk is full ({error.strerror}); free some space, or choose another --out")
    return OutputError(f"{path}: cannot be written ({error.strerror})")
