"""qwen3-export: Qwen3 checkpoints to the file an on-device app loads, proven to compute what it should.

The steps of the command line, as functions from values to values::

    from pathlib import Path
    import qwen3_export as qx

    model = qx.load("demo")
    export = qx.prepare(model, qx.find_recipe("q4_k_m"), out=Path("demo.gguf"))
    qx.emit(export.files)
    report = qx.check(Path("demo.gguf"), model)

Between ``prepare`` and ``emit``, a solver may choose better values in the same formats::

    text = qx.read_calibration(None, model.tokenizer)
    solution = qx.solve("gptq", model.graph, export.weight_formats, text, work_dir=Path("work"))
    export = qx.with_solution(export, solution)

Names are imported when they are first used, so that ``import qwen3_export`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_export.api import (
        Gates,
        Graph,
        Model,
        Report,
        Solution,
        check,
        emit,
        find_recipe,
        load,
        prepare,
        read,
        read_calibration,
        solve,
        with_solution,
    )

__version__ = "0.1.0"
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


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("qwen3_export.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
