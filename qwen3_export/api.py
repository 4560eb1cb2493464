"""The command line's steps as functions of a ``Model``; ``qwen3_export`` re-exports them."""

from __future__ import annotations

from pathlib import Path

from qwen3_export.calibration.solving import Solution, solve
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.graph import Graph
from qwen3_export.parity.report import Gates, Report
from qwen3_export.targets.artifacts import check_artifact, target_of
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import prepare, with_solution
from qwen3_export.targets.gguf.read import open_gguf, read_graph
from qwen3_export.targets.gguf.recipes import find_recipe

__all__ = [
    "Gates",
    "Graph",
    "Model",
    "Report",
    "Solution",
    "check",
    "emit",
    "find_recipe",
    "load",
    "prepare",
    "read",
    "read_calibration",
    "solve",
    "with_solution",
]


def read(path: Path, model: Model) -> Graph:
    """The checkpoint's graph with the values that an artifact stores; nothing is decoded before it is asked for.

    Raises CheckpointError if the artifact's weights are not those of the model.
    """
    if target_of(path) == "onnx":
        from qwen3_export.targets.onnx import read as onnx_read

        return onnx_read.read_graph(onnx_read.open_onnx(path), model.graph)
    return read_graph(open_gguf(path), model.graph)


def check(path: Path, model: Model, *, full: bool = False, gates: Gates | None = None) -> Report:
    """Compare an artifact with the checkpoint that it was made of; see docs/parity.md for what the report says."""
    return check_artifact(path, model, full=full, gates=gates)
