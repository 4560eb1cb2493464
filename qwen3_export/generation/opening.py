"""Opening whatever can talk: an artifact of any target in its own runtime, or a checkpoint in the fp32 reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.errors import ExportError
from qwen3_export.generation.speech import Speech
from qwen3_export.generation.stepper import Runtime
from qwen3_export.targets.artifacts import is_coreml, is_executorch, is_onnx, target_of

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model

__all__ = ["Opened", "is_artifact", "open_artifact", "open_checkpoint"]

# One module a target; each has ``open_artifact(path, model, *, threads)``.
ADAPTERS = {
    "gguf": "qwen3_export.targets.gguf.generate",
    "onnx": "qwen3_export.targets.onnx.generate",
    "executorch": "qwen3_export.targets.executorch.generate",
    "coreml": "qwen3_export.targets.coreml.generate",
}
SUFFIXES = (".gguf", ".onnx", ".pte", ".mlpackage")
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A runtime with a model in it, and the tokenizer and template that go with it."""

    runtime: Runtime
    speech: Speech


def is_artifact(subject: str) -> bool:
    """Whether a name is an artifact's rather than a checkpoint's: by its suffix, or by what lies there."""
    path = Path(subject)
    return path.suffix in SUFFIXES or path.is_file() or is_onnx(path) or is_executorch(path) or is_coreml(path)


@contextmanager
def open_artifact(path: Path, model: Model | None = None, *, threads: int | None = None) -> Iterator[Opened]:
    """Open an artifact in the runtime that it is made for; ``model`` lends what the artifact does not carry.

    Raises ExportError for what is no artifact, MissingExtraError without the runtime, CheckpointError where it refuses
    the artifact.
    """
    target = target_of(path)
    if target == "gguf":
        _check_is_gguf(path)
    adapter: Callable[..., AbstractContextManager[Opened]] = import_module(ADAPTERS[target]).open_artifact
    with adapter(path, model, threads=threads) as opened:
        yield opened


@contextmanager
def open_checkpoint(model: Model) -> Iterator[Opened]:
    """Open a checkpoint in the fp32 reference."""
    from qwen3_export.generation.reference import reference_runtime
    from qwen3_export.generation.speech import folder_speech

    yield Opened(runtime=reference_runtime(model.graph), speech=folder_speech(model.folder))


def _check_is_gguf(path: Path) -> None:
    """Before llama.cpp is asked to load a text file."""
    with path.open("rb") as file:
        if file.read(len(GGUF_MAGIC)) != GGUF_MAGIC:
            raise ExportError(
                f"{path}: not a GGUF file; name a .gguf, an exported folder, or a checkpoint's folder or hub id"
            )
