"""The errors that this toolkit raises on purpose, as one small hierarchy.

Every message is one sentence that says what is wrong, where, and what to do:
``model.layers.3.mlp.down_proj: in_features 3072 is not a multiple of group_size 100; use 32, 64 or 128``.
The command line prints the message and exits with 1; ``--debug`` shows the traceback.
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
    """The given model name is no folder, and nothing that can be downloaded."""


class CheckpointError(ExportError):
    """Files of a checkpoint or an artifact are damaged, incomplete or contradict each other."""


class UnsupportedModelError(ExportError):
    """The checkpoint is sound, but this toolkit (or the chosen target) does not support such a model."""


class CalibrationError(ExportError):
    """The calibration text cannot be read, or is too short."""


class QuantizationError(ExportError):
    """A weight cannot be stored in the chosen number format."""


class OptionError(ExportError):
    """An option has a value that it cannot have, or contradicts another."""


class OutputError(ExportError):
    """A file or folder cannot be written: no space, no permission, or something else lies there."""


class MissingExtraError(ExportError):
    """An optional package is needed and not installed."""

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}, which is not installed; pip install 'qwen3-export[{extra}]'")
