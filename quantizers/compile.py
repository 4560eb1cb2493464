"""How kernels are compiled by numba, and the folder that compiled kernels are kept in.

A kernel is compiled the first time it is called with arguments of some types, and kept on disk, so that only the first
run on a machine waits for it. The folder is the user's cache (``~/.cache/qwen3-export/numba`` on Linux,
``~/Library/Caches/qwen3-export/numba`` on macOS), or ``NUMBA_CACHE_DIR`` where that is set. If that folder
cannot be written, each process compiles kernels anew.

Numba notices a change of the file that a kernel is in, but not a change of other files whose functions were inlined
into it. The folder is therefore named by a digest of all files that may be inlined: those in the kernel's own folder,
``lanes.py`` and ``codebook.py``.

Options: ``nogil``, because callers run kernels on a thread pool. No ``fastmath`` and no contraction, because the same
weights must give the same bytes however they are cut into blocks. Numpy's error model, where a division by zero gives
infinity and no exception, because a branch before each division would prevent vectorized loops.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numpy.typing import NDArray

__all__ = ["cache_folder", "inlined", "kernel", "read_only"]

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile a function on its first call, keep the result on disk, and run it without the GIL."""
    folder = _writable_cache_folder(Path(function.__code__.co_filename).parent)
    if folder is None:
        return numba.njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    # Numba reads this setting when a function is decorated; it is restored for other users of numba in the process.
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = before


def inlined(function: Function) -> Function:
    """Mark a function that only kernels call: it is compiled into each of them, and not kept by itself."""
    return numba.njit(nogil=True, error_model="numpy", inline="never")(function)  # type: ignore[no-any-return]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view of an array.

    Arrays that a kernel only reads are passed this way. Otherwise it would be compiled twice: for writable arrays, and
    for read-only ones (bytes of a file).
    """
    view = array.view()
    view.flags.writeable = False
    return view


def cache_folder(sources: Path) -> Path:
    """The folder for compiled kernels that are defined in the folder ``sources``; it need not exist."""
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    if chosen:
        return Path(chosen)
    if sys.platform == "darwin":
        caches = Path.home() / "Library" / "Caches"
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "qwen3-export" / "numba" / _digest(sources)


@functools.cache
def _writable_cache_folder(sources: Path) -> Path | None:
    try:
        folder = cache_folder(sources)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None


def _digest(sources: Path) -> str:
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*(here / name for name in ("codebook.py", "compile.py", "lanes.py")), *sorted(sources.glob("*.py"))):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]
