"""The folders in which runs keep unfinished work: made, and removed with nothing that lies beside them.

A run's folder is named by its kind and a digest (``gptq-1f0c…``, 16 hexadecimal digits). A user may name any folder for
unfinished work, so other files and folders in it are theirs.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from qwen3_export.errors import OutputError

__all__ = ["RUN_KINDS", "make_run_folder", "remove_runs"]

RUN_KINDS = ("statistics", "gptq", "awq", "sensitivity", "tuning")


def make_run_folder(path: Path) -> None:
    """Create the folder of a run, if it is not there yet. Raises OutputError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror}); choose another `work_dir`") from error


def remove_runs(folder: Path, kinds: Sequence[str] = RUN_KINDS) -> None:
    """Remove the folders of runs of these kinds in ``folder``, and ``folder`` itself if nothing else is in it."""
    if not folder.is_dir():
        return
    name = re.compile(rf"({'|'.join(kinds)})-[0-9a-f]{{16}}")
    for run in folder.iterdir():
        if name.fullmatch(run.name) and run.is_dir() and not run.is_symlink():
            shutil.rmtree(run)
    with suppress(OSError):  # not empty
        folder.rmdir()
