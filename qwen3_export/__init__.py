"""qwen3-export: Qwen3 checkpoints to the file an on-device app loads, proven to compute what it should.

What the command line does, as functions, for any target::

    import qwen3_export as qx

    model = qx.load("demo")
    plan = qx.plan(model, "gguf", "q4_k_m", out="demo.gguf")
    text = qx.calibration_text(None, model)
    artifact = qx.export(plan, method="gptq", text=text)
    report = qx.check(artifact, model)
    print(plan.num_bytes, report.verdict)

Names are imported when they are first used, so that ``import qwen3_export`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_export.api import (
        TARGETS,
        Calibration,
        Gates,
        Graph,
        Model,
        Plan,
        Report,
        Target,
        calibration_text,
        check,
        export,
        generate,
        load,
        plan,
        read,
    )

__version__ = "0.1.0"
__all__ = [
    "TARGETS",
    "Calibration",
    "Gates",
    "Graph",
    "Model",
    "Plan",
    "Report",
    "Target",
    "calibration_text",
    "check",
    "export",
    "generate",
    "load",
    "plan",
    "read",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("qwen3_export.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
