"""An ONNX folder in onnxruntime; caches stay in its own values between tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.checkpoint import read_json
from qwen3_export.errors import ExportError
from qwen3_export.generation.opening import Opened
from qwen3_export.generation.speech import artifact_speech
from qwen3_export.generation.stepper import ChunkedStepper, Runtime, Stepper
from qwen3_export.targets.onnx.read import graph_path_of
from qwen3_export.targets.onnx.run import OnnxSession, runtime_version

if TYPE_CHECKING:
    from qwen3_export.model import Model

__all__ = ["open_artifact"]

# The graph gives the logits of every position: 80 MB for so many tokens of Qwen3's vocabulary.
CHUNK = 128


@contextmanager
def open_artifact(path: Path, model: Model | None, *, threads: int | None = None) -> Iterator[Opened]:
    """Open a folder (or the graph in it); ``model`` lends tokenizer, template or context length where none is there."""
    graph_path = graph_path_of(path)
    folder = graph_path.parent.parent if graph_path.parent.name == "onnx" else graph_path.parent
    speech = artifact_speech(folder, model)
    context_length = _context_length(folder, model)
    session = OnnxSession(graph_path, threads=threads)

    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        stream = session.stream()
        yield ChunkedStepper(lambda tokens, _past: stream.append(tokens), positions=positions, chunk=CHUNK)

    name = f"onnxruntime {runtime_version()}"
    yield Opened(runtime=Runtime(name=name, context_length=context_length, start=start), speech=speech)


def _context_length(folder: Path, model: Model | None) -> int:
    """As onnxruntime-genai's config says, or Hugging Face's."""
    genai, config = folder / "genai_config.json", folder / "config.json"
    stated = read_json(genai).get("model", {}).get("context_length") if genai.exists() else None
    if stated is None and config.exists():
        stated = read_json(config).get("max_position_embeddings")
    if stated is None and model is not None:
        stated = model.graph.config.max_position_embeddings
    if not isinstance(stated, int):
        raise ExportError(f"{folder}: no config says how long the context is; name the checkpoint with --model")
    return stated
