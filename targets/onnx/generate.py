"""Generate with an ONNX folder in onnxruntime, which keeps the KV cache between tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_export.errors import ExportError
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.speech import artifact_speech
from qwen3_export.generation.stepper import ChunkedStepper, Runtime, Stepper
from qwen3_export.targets.onnx.read import graph_path_of
from qwen3_export.targets.onnx.run import CacheSize, OnnxSession, runtime_version

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model

__all__ = ["generate"]

# The graph gives the logits of every position: 80 MB for so many tokens of Qwen3's vocabulary.
CHUNK = 128
GENAI = "genai_config.json"


@contextmanager
def generate(path: Path, model: Model | None, *, threads: int | None = None) -> Iterator[Opened]:
    """Open a folder (or the graph in it); ``model`` lends tokenizer, template or context length where none is there."""
    graph_path = graph_path_of(path)
    folder = graph_path.parent.parent if graph_path.parent.name == "onnx" else graph_path.parent
    speech = artifact_speech(folder, model)
    genai = Fields(_read_if_there(folder / GENAI), folder / GENAI).object("model") or {}
    context_length = _context_length(folder, genai, model)
    session = OnnxSession(graph_path, _cache_size(folder, genai, model), threads=threads)

    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        stream = session.stream()
        yield ChunkedStepper(lambda tokens, _past: stream.append(tokens), positions=positions, chunk=CHUNK)

    name = f"onnxruntime {runtime_version()}"
    yield Opened(runtime=Runtime(name=name, context_length=context_length, start=start), speech=speech)


def _context_length(folder: Path, genai: Mapping[str, Any], model: Model | None) -> int:
    """As onnxruntime-genai's config says, or Hugging Face's."""
    config = folder / "config.json"
    stated = Fields(genai, folder / GENAI).integer("context_length")
    if stated is None:
        stated = Fields(_read_if_there(config), config).integer("max_position_embeddings")
    if stated is None and model is not None:
        stated = model.graph.config.context_length
    if stated is None:
        raise ExportError(f"{folder}: no config says how long the context is; name the checkpoint with `model`")
    return stated


def _cache_size(folder: Path, genai: Mapping[str, Any], model: Model | None) -> CacheSize | None:
    """What a graph need not say itself: onnxruntime-genai's builder gives a cache's last axis a name, and no size."""
    path = folder / GENAI
    decoder = Fields(Fields(genai, path).object("decoder") or {}, path)
    heads, head_dim = decoder.integer("num_key_value_heads"), decoder.integer("head_size")
    if model is not None:
        heads, head_dim = model.graph.config.num_key_value_heads, model.graph.config.head_dim
    return None if heads is None or head_dim is None else CacheSize(num_key_value_heads=heads, head_dim=head_dim)


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}
