"""What can go wrong, as one small hierarchy.

Every message is one sentence that says what, where and what to do:
``model.layers.3.mlp.down_proj: in_features 3072 is not a multiple of group_size 100; use 32, 64 or 128``.
The command line prints it and exits with 1; ``--debug`` brings the traceback.
"""

from __future__ import annotations

__all__ = [
    "CalibrationError",
    "CheckpointError",
    "ExportError",
    "MissingExtraError",
    "ModelNotFoundError",
    "OptionError",
    "OutputError",
    "QuantizationError",
    "UnsupportedModelError",
]


class ExportError(Exception):
    """Base of all errors that the user can act upon."""


class ModelNotFoundError(ExportError):
    """``--model`` names nothing that can be opened or downloaded."""


class CheckpointError(ExportError):
    """The checkpoint's files are damaged, incomplete or contradict each other."""


class UnsupportedModelError(ExportError):
    """The checkpoint is sound, but not a model that this toolkit (or this target) can represent."""


class CalibrationError(ExportError):
    """The text to calibrate on cannot be read, or says too little."""


class QuantizationError(ExportError):
    """A weight cannot be stored in the number format that was asked for."""


class OptionError(ExportError):
    """An option has a value that it cannot have, or contradicts another."""


class OutputError(ExportError):
    """The result cannot be written where it was asked for."""


class MissingExtraError(ExportError):
    """An optional package is needed, and not installed."""

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed; pip install 'qwen3-export[{extra}]'")
