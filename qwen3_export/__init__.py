"""qwen3-export: Qwen3 checkpoints to the file an on-device app loads, proven to compute what it should.

The steps of the command line, as functions from values to values::

    import qwen3_export as qx

    model = qx.load("demo")
    export = qx.prepare(model, qx.find_recipe("q4_k_m"), out=Path("demo-q4_k_m.gguf"))
    qx.emit(export.files)
    report = qx.check("demo-q4_k_m.gguf", model)

Names are imported when they are first used, so that ``import qwen3_export`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3_export.model import Model, load
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.export import prepare
    from qwen3_export.targets.gguf.recipes import find_recipe

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "emit", "find_recipe", "load", "prepare"]

_HOMES = {
    "Model": "qwen3_export.model",
    "load": "qwen3_export.model",
    "prepare": "qwen3_export.targets.gguf.export",
    "emit": "qwen3_export.targets.gguf.emit",
    "find_recipe": "qwen3_export.targets.gguf.recipes",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
