"""What onnxruntime-genai and transformers.js need of an ONNX folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.parity.documents import read_json
from qwen3_export.parity.tokenization import GENAI as GENAI_LIMITS
from qwen3_export.parity.tokenization import TRANSFORMERS_JS, token_remarks
from qwen3_export.targets.lint import Finding
from qwen3_export.targets.onnx.metadata_check import metadata_differences
from qwen3_export.targets.onnx.read import OnnxFile, graph_path_of, open_onnx, tensor_differences

__all__ = ["consumers_of", "lint_onnx"]

GENAI, JAVASCRIPT = "onnxruntime-genai", "transformers.js"

# A browser's ArrayBuffer holds no more, and a protobuf may not.
MOST_BYTES = 2**31 - 1
# What transformers.js names the dimensions of its caches by (its src/models.js).
JAVASCRIPT_DIMENSIONS = {"batch_size", "past_sequence_length"}


def consumers_of(path: Path) -> tuple[str, ...]:
    """For whom a folder is laid out: transformers.js looks for graphs in a folder ``onnx``."""
    return (JAVASCRIPT,) if graph_path_of(path).parent.name == "onnx" else (GENAI,)


def lint_onnx(path: Path, graph: Graph, tokenizer: Tokenizer, *, consumers: Sequence[str]) -> Iterator[Finding]:
    """Attributes, tables and configs against the checkpoint, then what the consumer wants."""
    file, everyone = open_onnx(path), tuple(consumers)
    for text in [*metadata_differences(file, graph, tokenizer), *tensor_differences(file, graph)]:
        yield Finding(text=text, consumers=everyone)
    if file.graph_path.stat().st_size > MOST_BYTES:
        yield Finding(text=f"{file.graph_path.name} is larger than a protobuf may be; keep weights outside it",
                      consumers=everyone)  # fmt: skip
    for text in token_remarks(tokenizer, TRANSFORMERS_JS if JAVASCRIPT in everyone else GENAI_LIMITS):
        yield Finding(text=text, consumers=everyone, is_error=False)
    yield from _javascript(file) if JAVASCRIPT in everyone else _genai(file)


def _genai(file: OnnxFile) -> Iterator[Finding]:
    document = read_json(file.folder / "genai_config.json")
    if document is None:
        yield Finding(text="genai_config.json is missing, or cannot be read", consumers=(GENAI,))
        return
    decoder: dict[str, Any] = document.get("model", {}).get("decoder", {})
    named, held = decoder.get("filename"), file.graph_path.name
    if named != held:
        yield Finding(text=f"genai_config.json names the graph {named}, the folder holds {held}", consumers=(GENAI,))
    proto = file.proto.graph
    for part, values in (("inputs", proto.input), ("outputs", proto.output)):
        names = {value.name for value in values}
        for name in decoder.get(part, {}).values():
            first = str(name).replace("%d", "0")
            if first not in names:
                yield Finding(text=f"genai_config.json names {first}, which is none of the graph's {part}",
                              consumers=(GENAI,))  # fmt: skip


def _javascript(file: OnnxFile) -> Iterator[Finding]:
    config = read_json(file.folder / "config.json") or {}
    told = config.get("transformers.js_config", {})
    if not told.get("use_external_data_format"):
        yield Finding(text="config.json does not say use_external_data_format, so the data file is not fetched",
                      consumers=(JAVASCRIPT,))  # fmt: skip
    wanted = f"{file.graph_path.name}_data"
    if file.data_path.name != wanted:
        yield Finding(
            text=f"the data file is {file.data_path.name}, where {wanted} is fetched", consumers=(JAVASCRIPT,)
        )
    found = {
        dimension.dim_param
        for value in file.proto.graph.input
        if value.name.startswith("past_key_values.")
        for dimension in value.type.tensor_type.shape.dim
    }
    if not found >= JAVASCRIPT_DIMENSIONS:
        missing = ", ".join(sorted(JAVASCRIPT_DIMENSIONS - found))
        yield Finding(text=f"caches have no dimension called {missing}", consumers=(JAVASCRIPT,))
    if file.data_path.stat().st_size > MOST_BYTES:
        yield Finding(
            text="the data file is larger than 2 GB, which no browser loads in one piece; use fewer bits",
            consumers=(JAVASCRIPT,),
        )
