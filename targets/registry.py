"""The table of targets.

A new target is a folder with ``target.py`` and ``doors.py``, a row here, an extra in pyproject.toml and a page in docs.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from qwen3_export.errors import ExportError
from qwen3_export.targets.coreml.target import COREML
from qwen3_export.targets.executorch.target import EXECUTORCH
from qwen3_export.targets.gguf.target import GGUF
from qwen3_export.targets.onnx.target import ONNX
from qwen3_export.targets.target import Plan, Target

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.generation.opened import Opened

__all__ = ["TARGETS", "find_target", "is_artifact", "open_artifact", "planned_target", "target_of"]

TARGETS: Mapping[str, Target] = MappingProxyType({target.name: target for target in (GGUF, ONNX, EXECUTORCH, COREML)})


def find_target(name: str) -> Target:
    """The target of this name; ExportError for another name."""
    if name not in TARGETS:
        raise ExportError(f"{name}: no such target; there is {', '.join(TARGETS)}")
    return TARGETS[name]


def planned_target(plan: Plan) -> Target:
    """The target whose kind of plan this is; ExportError for what is no plan."""
    for target in TARGETS.values():
        if isinstance(plan.options, target.options):
            return target
    raise ExportError(f"{type(plan).__name__}: not a plan of any target; make one with qwen3_export.plan")


def target_of(path: Path) -> Target:
    """The target whose artifact lies at a path; ExportError where none does."""
    if not path.exists():
        raise ExportError(f"{path}: no such file or folder; name an artifact")
    for target in TARGETS.values():
        if target.owns(path):
            return target
    if path.is_dir():
        kinds = ", ".join(suffix for target in TARGETS.values() for suffix in target.suffixes)
        raise ExportError(f"{path}: a folder without an artifact ({kinds}); name the folder that an export has written")
    raise ExportError(
        f"{path}: not a GGUF file, nor another artifact; name a .gguf, an exported folder, or a checkpoint's folder or "
        "hub id"
    )


def is_artifact(subject: str) -> bool:
    """Whether a name is an artifact's rather than a checkpoint's: by its suffix, or by what lies there."""
    path = Path(subject)
    suffixes = {suffix for target in TARGETS.values() for suffix in target.suffixes}
    return path.suffix in suffixes or path.is_file() or any(target.owns(path) for target in TARGETS.values())


def open_artifact(
    path: Path, model: Model | None = None, *, threads: int | None = None
) -> AbstractContextManager[Opened]:
    """Open an artifact for generation, in the runtime that it is made for.

    ``model`` lends the tokenizer and template that the artifact lacks. Raises ExportError for what is no artifact,
    MissingExtraError without the runtime, CheckpointError where the runtime refuses the artifact.
    """
    return target_of(path).doors.generate(path, model, threads=threads)
