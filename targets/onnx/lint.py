"""Check what onnxruntime-genai and transformers.js need of an ONNX folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.files.json_file import object_in
from qwen3_export.files.shown import shown
from qwen3_export.graph import Graph
from qwen3_export.parity.documents import read_json
from qwen3_export.parity.tokenization import GENAI as GENAI_LIMITS
from qwen3_export.parity.tokenization import TRANSFORMERS_JS, token_remarks
from qwen3_export.targets.lint import Finding
from qwen3_export.targets.onnx.metadata_check import metadata_differences
from qwen3_export.targets.onnx.read import OnnxFile, graph_path_of, open_onnx, tensor_differences
from qwen3_export.targets.onnx.versions import needed_sentences

__all__ = ["consumers_of", "lint_onnx"]

GENAI, JAVASCRIPT = "onnxruntime-genai", "transformers.js"

# A browser's ArrayBuffer holds no more, and a protobuf may not.
MOST_BYTES = 2**31 - 1
BROWSER_BYTES = 4 << 30
FLOAT16 = 10  # onnx.TensorProto.DataType
# What transformers.js names the dimensions of its caches by (its src/models.js).
JAVASCRIPT_DIMENSIONS = {"batch_size", "past_sequence_length"}


def consumers_of(path: Path) -> tuple[str, ...]:
    """For whom a folder is laid out: transformers.js looks for graphs in a folder ``onnx``."""
    return (JAVASCRIPT,) if graph_path_of(path).parent.name == "onnx" else (GENAI,)


def lint_onnx(path: Path, graph: Graph, tokenizer: Tokenizer, *, consumers: Sequence[str]) -> Iterator[Finding]:
    """Attributes, tables and configs against the checkpoint, then what the consumer wants."""
    file, everyone = open_onnx(path), tuple(consumers)
    missing = tensor_differences(file, graph)
    is_foreign = bool(missing) and PREFIX + "version" not in file.metadata
    for text in metadata_differences(file, graph, tokenizer, is_foreign=is_foreign):
        yield Finding(text=text, consumers=everyone)
    if is_foreign:
        yield Finding(
            text="another tool's graph, whose weights cannot be told by their names: whether they are the checkpoint's "
            "is not known here; check compares what it computes",
            consumers=everyone,
            is_error=False,
        )
    else:
        yield from (Finding(text=text, consumers=everyone) for text in missing)
    if file.graph_path.stat().st_size > MOST_BYTES:
        yield Finding(text=f"{file.graph_path.name} is larger than a protobuf may be; keep weights outside it",
                      consumers=everyone)  # fmt: skip
    for text in token_remarks(tokenizer, TRANSFORMERS_JS if JAVASCRIPT in everyone else GENAI_LIMITS):
        yield Finding(text=text, consumers=everyone, is_error=False)
    for text, is_error in needed_sentences(file.proto.graph, is_for_browsers=JAVASCRIPT in everyone):
        yield Finding(text=text, consumers=everyone, is_error=is_error)
    yield from _javascript(file, is_foreign=is_foreign) if JAVASCRIPT in everyone else _genai(file)


def _genai(file: OnnxFile) -> Iterator[Finding]:
    document = read_json(file.folder / "genai_config.json")
    if document is None:
        yield Finding(text="genai_config.json is missing, or cannot be read", consumers=(GENAI,))
        return
    decoder = object_in(document, "model", "decoder")
    named, held = decoder.get("filename"), file.graph_path.name
    if named != held:
        yield Finding(
            text=f"genai_config.json names the graph {shown(named)}, the folder holds {held}", consumers=(GENAI,)
        )
    proto = file.proto.graph
    for part, values in (("inputs", proto.input), ("outputs", proto.output)):
        names = {value.name for value in values}
        for name in object_in(decoder, part).values():
            first = str(name).replace("%d", "0")
            if first not in names:
                yield Finding(text=f"genai_config.json names {shown(first)}, which is none of the graph's {part}",
                              consumers=(GENAI,))  # fmt: skip


def _javascript(file: OnnxFile, *, is_foreign: bool) -> Iterator[Finding]:
    yield from (Finding(text=text, consumers=(JAVASCRIPT,)) for text in _data_files(file))
    found = {
        dimension.dim_param
        for value in file.proto.graph.input
        if value.name.startswith("past_key_values.")
        for dimension in value.type.tensor_type.shape.dim
    }
    if not found >= JAVASCRIPT_DIMENSIONS:
        missing = ", ".join(sorted(JAVASCRIPT_DIMENSIONS - found))
        yield Finding(text=f"caches have no dimension called {missing}", consumers=(JAVASCRIPT,))
    operators = {node.op_type for node in file.proto.graph.node}
    if "GatherBlockQuantized" in operators:
        yield Finding(
            text="GatherBlockQuantized has no kernel in the default device (wasm) of transformers.js 4 in a browser, "
            "which therefore does not load the graph; export it again",
            consumers=(JAVASCRIPT,),
        )
    if "GroupQueryAttention" in operators and "order.inverse" not in _values(file) and not is_foreign:
        yield Finding(
            text="prompts of different lengths in one call give wrong text, because the graph is wrong for padding on "
            "the left; export it again, or give one prompt a call",
            consumers=(JAVASCRIPT,),
        )
    if any(value.name == "logits" and value.type.tensor_type.elem_type == FLOAT16 for value in file.proto.graph.output):
        yield Finding(
            text="transformers.js 3.8 makes nonsense of fp16 logits where JavaScript has no Float16Array (Node 22 and "
            "older); export it again, or use transformers.js 4",
            consumers=(JAVASCRIPT,),
            is_error=False,
        )
    large = [path for path in file.data_paths if path.stat().st_size > MOST_BYTES]
    for path in large:
        yield Finding(
            text=f"{path.name} is larger than 2 GB, which no browser loads in one piece; use fewer bits",
            consumers=(JAVASCRIPT,),
        )
    total = sum(path.stat().st_size for path in file.data_paths)
    if total > BROWSER_BYTES and not large:
        yield Finding(
            text="the weights are larger than the 4 GiB that WebAssembly has; this folder is for Node",
            consumers=(JAVASCRIPT,),
        )


def _data_files(file: OnnxFile) -> Iterator[str]:
    """What config.json says of the data files, against the files that the graph names."""
    own = object_in(read_json(file.folder / "config.json"), "transformers.js_config")
    told = own.get("use_external_data_format") or 0
    name = file.graph_path.name
    if isinstance(told, dict):
        told = told.get(name, told.get("model", 0))
    wanted = [f"{name}_data", *(f"{name}_data_{i}" for i in range(1, len(file.data_paths)))][: len(file.data_paths)]
    found = [path.name for path in file.data_paths]
    if found != wanted:
        yield f"the data is in {', '.join(found)}, where {', '.join(wanted)} is fetched"
    count = int(told) if isinstance(told, int) else 0
    if count != len(found):
        yield (
            f"config.json says use_external_data_format {count} for {name}, so that {count} data files are "
            f"fetched, where the graph has {len(found)}"
        )


def _values(file: OnnxFile) -> set[str]:
    return {name for node in file.proto.graph.node for name in node.output}
