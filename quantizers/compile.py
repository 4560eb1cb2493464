"""Where kernels meet the compiler: the options every kernel is compiled with, and the folder they are kept in.

Kernels are compiled by numba the first time they are called with a given type, and kept on disk, so that only
the first run of a machine pays for it. The folder is the user's cache (``~/.cache/qwen3-export/numba`` on Linux,
``~/Library/Caches/qwen3-export/numba`` on macOS), or ``NUMBA_CACHE_DIR`` where that is set. Where it cannot be
written, kernels are compiled anew in each process and everything else works.

Numba notices when the file of a kernel changes, but not when a file changes whose functions were inlined into it. The
folder is therefore named by a digest of all files that this can be: those beside the kernel's, ``lanes.py`` and
``codebook.py``.

Options: ``nogil``, because callers run kernels from a thread pool; no ``fastmath`` and no contraction, because the
same weights must give the same bytes however they are cut into blocks; numpy's error model (a division by zero is
infinite instead of an exception), because a branch before each division would keep loops from being vectorized.
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
    """Compile on first call, keep the result on disk, run without the GIL."""
    folder = _writable_cache_folder(Path(function.__code__.co_filename).parent)
    if folder is None:
        return numba.njit(nogil=True, error_model="numpy")(function)  # type: ignore[no-any-return]
    # Numba reads this setting when a function is decorated: other users of numba in the process keep theirs.
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return numba.njit(nogil=True, error_model="numpy", cache=True)(function)  # type: ignore[no-any-return]
    finally:
        numba.config.CACHE_DIR = before


def inlined(function: Function) -> Function:
    """A function that only kernels call: compiled into each of them, never kept by itself."""
    return numba.njit(nogil=True, error_model="numpy", inline="never")(function)  # type: ignore[no-any-return]


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A view that may not be written. What a kernel only reads is passed so: otherwise it would be compiled once for
    arrays that may be written, and again for those that may not (a file's bytes)."""
    view = array.view()
    view.flags.writeable = False
    return view


def cache_folder(sources: Path) -> Path:
    """The folder that kernels defined in the folder ``sources`` are kept in; it need not exist."""
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
