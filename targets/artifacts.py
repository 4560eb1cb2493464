"""Which target an artifact is of: a table from what lies at a path to the module that checks it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.errors import ExportError

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.parity.report import Gates, Report

__all__ = ["check_artifact", "is_coreml", "is_executorch", "is_onnx", "target_of"]


def target_of(path: Path) -> str:
    """``gguf``, ``onnx``, ``executorch`` or ``coreml``; ExportError for what is no artifact."""
    if not path.exists():
        raise ExportError(f"{path}: no such file; name an artifact")
    if is_onnx(path):
        return "onnx"
    if is_executorch(path):
        return "executorch"
    if is_coreml(path):
        return "coreml"
    if path.is_dir():
        raise ExportError(
            f"{path}: a folder without an .onnx, .pte or .mlpackage; name a GGUF file, or what an export wrote"
        )
    return "gguf"


def is_onnx(path: Path) -> bool:
    """Whether a path is an ONNX graph, or a folder with one."""
    if path.is_dir():
        return any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx"))
    return path.suffix == ".onnx" and path.exists()


def is_executorch(path: Path) -> bool:
    """Whether a path is an ExecuTorch program, or a folder with one."""
    return any(path.glob("*.pte")) if path.is_dir() else path.suffix == ".pte" and path.exists()


def is_coreml(path: Path) -> bool:
    """Whether a path is a Core ML package, or a folder with one."""
    return path.is_dir() and (path.suffix == ".mlpackage" or any(path.glob("*.mlpackage")))


def check_artifact(
    path: Path,
    model: Model,
    *,
    full: bool = False,
    gates: Gates | None = None,
    threads: int | None = None,
    say: Callable[[str], None] | None = None,
) -> Report:
    """Compare an artifact of any target with the checkpoint that it was made of."""
    target = target_of(path)
    if target == "executorch":
        from qwen3_export.targets.executorch.check import check_executorch

        return check_executorch(path, model.graph, model.tokenizer, full=full, gates=gates, say=say)
    if target == "onnx":
        from qwen3_export.targets.onnx.check import check_onnx

        return check_onnx(path, model.graph, model.tokenizer, full=full, gates=gates, threads=threads, say=say)
    if target == "coreml":
        from qwen3_export.targets.coreml.check import check_coreml

        return check_coreml(path, model.graph, model.tokenizer, full=full, gates=gates, say=say)
    from qwen3_export.targets.gguf.check import check_gguf

    return check_gguf(path, model.graph, model.tokenizer, full=full, gates=gates, threads=threads, say=say)
