"""Output files and folders that appear under their final name only when they are whole.

A file is written beside its final place under ``NAME.qwen3-export.partial``, made durable and then renamed, so an app
or a CI job never sees half of one. If the writing ends early (an error, Ctrl-C), the partial file is removed; one that
a power cut left behind is overwritten by the next run.

Nothing of the user's is replaced. What lies at the place already stays unless the caller says ``overwrite=True`` and
``is_ours`` recognises it as something that this toolkit wrote (see ``recognise.py``). This is checked when the writing
begins, and again right before the old is replaced. ``check_output`` and ``check_output_folder`` are the same check for
callers who want to know before long work.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from qwen3_export.errors import OutputError
from qwen3_export.files.locking import is_still_at, lock, partial_path
from qwen3_export.files.swap import first_foreign, left_over, recover_folder, swap_folder, sync_folder

__all__ = [
    "check_output",
    "check_output_folder",
    "partial_file",
    "partial_files",
    "partial_folder",
    "write_all",
    "write_text",
]


def _is_nothing(_: object) -> bool:
    """The default for ``is_ours``: nothing that exists was written by us."""
    return False


def check_output(
    path: Path,
    *,
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] = _is_nothing,
    inputs: Iterable[Path] = (),
) -> None:
    """Refuse an output file that cannot or must not be written.

    An existing file is replaced only with ``overwrite``, and only if it is empty or ``is_ours`` recognises it.
    ``inputs`` are files that are being read, and are never replaced. Raises OutputError.
    """
    if path.is_symlink():
        raise OutputError(f"{path}: a symbolic link, which would be replaced by a file; name the file it points to")
    if path.is_dir():
        raise OutputError(f"{path}: a folder; give the name of the file to write")
    _check_parent(path)
    if not path.exists():
        return
    if not path.is_file():
        raise OutputError(f"{path}: not a regular file, and would be replaced by one; choose another name")
    if any(source.exists() and path.samefile(source) for source in inputs):
        raise OutputError(f"{path}: is being read, and would be overwritten; choose another name")
    if not overwrite:
        raise OutputError(f"{path}: exists already; choose another name, or replace it with `overwrite=True`")
    if path.stat().st_size and not is_ours(path):
        raise OutputError(f"{path}: was not written by an export like this one, and is kept; choose another name")


def check_output_folder(
    path: Path,
    *,
    overwrite: bool = False,
    is_ours: Callable[[str], bool] = _is_nothing,
    inputs: Iterable[Path] = (),
) -> None:
    """Refuse an output folder that cannot or must not be written.

    A folder with files in it is replaced only with ``overwrite``, and only if ``is_ours`` knows each of them by its
    path within the folder (``onnx/model.onnx``), so that nobody's other files are removed. ``inputs`` are files
    that are being read, and stay. A folder that an interrupted run had moved aside is put back first. Folders above it
    that do not exist are created when it is written.
    Raises OutputError.
    """
    if path.is_symlink():
        raise OutputError(f"{path}: a symbolic link, which would be replaced by a folder; name the folder it points to")
    if path.exists() and not path.is_dir():
        raise OutputError(f"{path}: a file; give the name of the folder to write")
    _check_ancestor(path)
    if left_over(path).exists():
        with _locked_partial_folder(path):
            try:
                recover_folder(path, is_ours)
            except OSError as error:
                raise _as_output_error(path, error) from error
    if path.exists():
        _check_may_go(path, path, overwrite=overwrite, is_ours=is_ours, inputs=inputs)


@contextmanager
def partial_file(
    path: Path,
    *,
    num_bytes: int = 0,
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] = _is_nothing,
    inputs: Iterable[Path] = (),
) -> Iterator[int]:
    """A file descriptor to fill with ``num_bytes``; the file is renamed to ``path`` when the block ends well.

    Space is reserved before anything is written if the file system can do that. Raises OutputError when
    ``check_output`` refuses, the disk is or becomes full, or another run is writing the same file.
    """
    with partial_files([(path, num_bytes)], overwrite=overwrite, is_ours=is_ours, inputs=inputs) as descriptors:
        yield descriptors[0]


@contextmanager
def partial_files(
    files: Sequence[tuple[Path, int]],
    *,
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] = _is_nothing,
    inputs: Iterable[Path] = (),
) -> Iterator[list[int]]:
    """Several files that are one whole, by path and size; see ``partial_file``.

    A kill while they are renamed never leaves old and new files that look like one whole: the first file, without
    which the others cannot be opened, goes first and comes last.
    """
    inputs = list(inputs)

    def check() -> None:
        for path, _ in files:
            check_output(path, overwrite=overwrite, is_ours=is_ours, inputs=inputs)

    check()
    with ExitStack() as stack:
        descriptors = [stack.enter_context(_opened_partial(path, num_bytes)) for path, num_bytes in files]
        try:
            yield descriptors
            for descriptor in descriptors:
                os.fsync(descriptor)
            check()
            _rename([path for path, _ in files])
        except OSError as error:
            raise _as_output_error(files[0][0], error) from error


@contextmanager
def partial_folder(
    path: Path,
    *,
    overwrite: bool = False,
    is_ours: Callable[[str], bool] = _is_nothing,
    inputs: Iterable[Path] = (),
) -> Iterator[Path]:
    """A folder beside ``path`` to fill; it takes the place of ``path`` when the block ends well.

    Raises OutputError when ``check_output_folder`` refuses, the disk is or becomes full, or another run is writing
    the same folder.
    """
    inputs = list(inputs)
    check_output_folder(path, overwrite=overwrite, is_ours=is_ours, inputs=inputs)
    with _folders_above(path), _locked_partial_folder(path) as partial:
        try:
            recover_folder(path, is_ours)
            yield partial
            sync_folder(partial)
            swap_folder(
                partial,
                path,
                check=lambda there: _check_may_go(there, path, overwrite=overwrite, is_ours=is_ours, inputs=inputs),
            )
        except OSError as error:
            raise _as_output_error(path, error) from error


def write_text(
    path: Path,
    text: str,
    *,
    overwrite: bool = False,
    is_ours: Callable[[Path], bool] = _is_nothing,
    inputs: Iterable[Path] = (),
) -> None:
    """Write a small text file, whole or not at all. Raises OutputError as ``partial_file`` does."""
    with partial_file(path, overwrite=overwrite, is_ours=is_ours, inputs=inputs) as descriptor:
        write_all(descriptor, text.encode("utf-8"))


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data`` at the descriptor's position; the system may take it in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}; create it first")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent}: not writable; check its permissions, or choose another place")


def _check_ancestor(path: Path) -> None:
    """Refuse a folder that cannot be created, together with those above it."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise OutputError(f"{path}: {above} is a file, where a folder must be; choose another place")
    if not os.access(above, os.W_OK):
        raise OutputError(f"{above}: not writable; check its permissions, or choose another place")


@contextmanager
def _folders_above(path: Path) -> Iterator[None]:
    """The folders above ``path``; those that were created for it go again if the block ends early."""
    missing = [folder for folder in path.absolute().parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException as error:
        for folder in missing:
            with suppress(OSError):  # somebody else's files are in it, or it was never made
                folder.rmdir()
        if isinstance(error, OSError):
            raise _as_output_error(path, error) from error
        raise


def _check_may_go(
    there: Path, path: Path, *, overwrite: bool, is_ours: Callable[[str], bool], inputs: Iterable[Path]
) -> None:
    """Refuse to remove the folder ``there``, which the user knows as ``path``."""
    for source in inputs:
        # The file itself, or, as in a Hugging Face cache, a link that points out of the folder.
        places = (source.resolve(), source.parent.resolve() / source.name)
        if any(place.is_relative_to(path.resolve()) for place in places):
            raise OutputError(f"{path}: holds {source.name}, which is being read; choose another name")
    try:
        is_empty = next(there.iterdir(), None) is None
        foreign = first_foreign(there, is_ours)
    except OSError as error:
        raise _as_output_error(path, error) from error
    if not is_empty and not overwrite:
        raise OutputError(
            f"{path}: exists already and is not empty; choose another name, or replace it with `overwrite=True`"
        )
    if foreign is not None:
        raise OutputError(f"{path}: holds {foreign}, which is no part of an export; choose another name")


def _rename(paths: Sequence[Path]) -> None:
    """Give partial files their names; see ``partial_files`` for the order."""
    first, *others = paths
    if others:
        first.unlink(missing_ok=True)
    for path in (*others, first):
        partial_path(path).replace(path)
    descriptor = os.open(first.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked_partial_folder(path: Path) -> Iterator[Path]:
    """An empty, locked folder beside ``path``, which is removed unless it was renamed meanwhile."""
    partial = partial_path(path)
    try:
        descriptor = lock(path, is_folder=True)
    except OSError as error:
        raise _as_output_error(path, error) from error
    try:
        for left in partial.iterdir():  # by a power cut
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        yield partial
    finally:
        if is_still_at(descriptor, partial):
            shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


@contextmanager
def _opened_partial(path: Path, num_bytes: int) -> Iterator[int]:
    """An open, locked and reserved partial file, which is removed unless it was renamed meanwhile."""
    try:
        descriptor = lock(path, is_folder=False)
    except OSError as error:
        raise _as_output_error(path, error) from error
    try:
        _reserve(descriptor, path, num_bytes)
        yield descriptor
    finally:
        if is_still_at(descriptor, partial_path(path)):
            partial_path(path).unlink(missing_ok=True)
        os.close(descriptor)


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
        return OutputError(
            f"{path}: the disk is full ({error.strerror or error}); free some space, or choose another place"
        )
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); check its permissions, or choose another place"
    )
