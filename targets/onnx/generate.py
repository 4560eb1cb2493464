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
from qwen3_export.targets.onnx.names import COS_CACHE
from qwen3_export.targets.onnx.read import graph_path_of, open_onnx
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
    context_length = _context_length(graph_path, folder, genai, model)
    session = OnnxSession(graph_path, _cache_size(folder, genai, model), threads=threads)

    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        stream = session.stream()
        yield ChunkedStepper(lambda tokens, _past: stream.append(tokens), positions=positions, chunk=CHUNK)

    name = f"onnxruntime {runtime_version()}"
    yield Opened(runtime=Runtime(name=name, context_length=context_length, start=start), speech=speech)


def _context_length(graph_path: Path, folder: Path, genai: Mapping[str, Any], model: Model | None) -> int:
    """The positions of the graph's own RoPE tables, or fewer where onnxruntime-genai's config says so.

    Hugging Face's ``config.json`` may be that of a longer graph in the same folder; it counts where the graph has no
    tables that we know.
    """
    table = open_onnx(graph_path).initializers.get(COS_CACHE)
    held = None if table is None else table.num_rows
    stated = Fields(genai, folder / GENAI).integer("context_length")
    if stated is not None or held is not None:
        return min(length for length in (stated, held) if length is not None)
    config = folder / "config.json"
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
