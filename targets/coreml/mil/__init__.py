"""Run a saved .mlpackage operation by operation in torch, on any machine."""

from __future__ import annotations

from qwen3_export.targets.coreml.mil.arithmetic import Overflow
from qwen3_export.targets.coreml.mil.package import Outputs, Package, State, open_package, run

__all__ = ["Outputs", "Overflow", "Package", "State", "open_package", "run"]
