"""Plan an ONNX export, and write the folder.

Everything that can be refused is refused in ``prepare``, before a byte is written.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.calibration.provenance import describe, record_bytes
from qwen3_export.checkpoint.model import Model
from qwen3_export.config import Qwen3Config
from qwen3_export.errors import MissingExtraError, OptionError, QuantizationError
from qwen3_export.files.atomic import partial_files, partial_folder
from qwen3_export.graph import Graph
from qwen3_export.parity.tokenization import GENAI, TRANSFORMERS_JS, token_remarks
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.allocating import Allocation, Slot, chosen_formats, read_allocation, record_of
from qwen3_export.targets.documents import TOKENIZER_DOCUMENTS, tokenizer_documents
from qwen3_export.targets.onnx.layout import DataPlan, plan_data, stored_matrices
from qwen3_export.targets.onnx.names import rope_caches
from qwen3_export.targets.onnx.recipes import OnnxFormat, Recipe, assign
from qwen3_export.targets.onnx.slots import slots_of
from qwen3_export.targets.onnx.target import ONNX, Flavour, OnnxOptions
from qwen3_export.targets.target import REPORT_FILES, Written
from qwen3_export.units import human_size

if TYPE_CHECKING:
    from onnx import ModelProto

    from qwen3_export.calibration.solving import Method, Solution

__all__ = [
    "OnnxExport",
    "default_path",
    "graph_proto",
    "is_export_file",
    "prepare",
    "with_solution",
    "write",
]

# The graph's file, by flavour and recipe; transformers.js finds it by its own names for number types.
JS_SUFFIXES = {
    "fp32": "",
    "fp16": "_fp16",
    "int8": "_quantized",
    "int4": "_q4",
    "int4_int8": "_q4",
    "int4_fp16": "_q4f16",
}
JS_DTYPES = {
    "fp32": "fp32",
    "fp16": "fp16",
    "int8": "q8",
    "int4": "q4",
    "int4_int8": "q4",
    "int4_fp16": "q4f16",
}
# Context where the user asks for none. onnxruntime-genai allocates a KV cache for all of it.
CONTEXT_LENGTH = 4096
# What a choice of formats may add to the graph: its record, and in each layer q, k and v as operators of their own.
RECORD_BYTES, BYTES_A_LAYER = 2048, 2048
# What a browser fetches in one piece, with some room below the 2 GiB of an ArrayBuffer.
BROWSER_FILE_BYTES = 2_000_000_000
# WebAssembly addresses 4 GiB; weights are read into it whether a GPU takes them from there or not.
BROWSER_BYTES = 4 << 30
_SUFFIX = f"(?:{'|'.join(sorted(set(JS_SUFFIXES.values())))})"
JS_FILES = tuple(map(re.compile, (rf"onnx/model{_SUFFIX}\.onnx(?:_data(?:_\d+)?)?", rf"report{_SUFFIX}\.json")))
MODEL_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxExport:
    """An export that is ready to be written; ``formats`` by weight name, ``graph`` with the stored values."""

    model: Model
    recipe: Recipe
    options: OnnxOptions
    graph: Graph
    out: Path
    formats: Mapping[str, OnnxFormat]
    plan: DataPlan
    context_length: int
    solution: Solution | None = None
    allocation: Allocation | None = None

    @property
    def graph_file(self) -> str:
        """Relative to the folder."""
        return "model.onnx" if self.options.flavour == "genai" else f"onnx/model{JS_SUFFIXES[self.recipe.name]}.onnx"

    @property
    def data_files(self) -> tuple[str, ...]:
        """Relative to the folder: ``model.onnx_data``, ``model.onnx_data_1``, … for transformers.js."""
        first = self.graph_file + (".data" if self.options.flavour == "genai" else "_data")
        return (first, *(f"{first}_{i}" for i in range(1, len(self.plan.file_bytes))))

    @property
    def js_dtype(self) -> str:
        """What transformers.js calls this number type."""
        return JS_DTYPES[self.recipe.name]

    @property
    def num_bytes(self) -> int:
        """Of the data; the graph beside it is some kilobytes.

        Where formats are chosen, what the graph may grow by counts too: no folder is larger than the recipe's.
        """
        layers = self.graph.config.num_hidden_layers
        return self.plan.num_bytes + (0 if self.allocation is None else RECORD_BYTES + BYTES_A_LAYER * layers)

    @property
    def beside_bytes(self) -> int:
        """The graph, and records of a solver and of tuning."""
        return len(graph_bytes(self)) + record_bytes(self.graph)

    @property
    def num_weights(self) -> int:
        """Weights as they are stored: what ``write`` counts."""
        return self.graph.num_parameters

    @property
    def weight_formats(self) -> Mapping[str, OnnxFormat]:
        return self.formats

    @property
    def bits_per_weight(self) -> float:
        """Bits of stored weights over their number; a shared embedding counts once."""
        stored = sum(part.num_bytes for parts in self.plan.initializers.values() for part in parts.values())
        return 8 * stored / self.graph.num_parameters

    @property
    def report(self) -> Path:
        """In a folder for transformers.js, which may hold several number types, the report of this one."""
        suffix = "" if self.options.flavour == "genai" else JS_SUFFIXES[self.recipe.name]
        return self.out / f"report{suffix}.json"

    @property
    def remarks(self) -> tuple[str, ...]:
        """A folder that is added to, what browsers take in several files or not at all, and what needs new releases."""
        from qwen3_export.targets.onnx.shelf import others_kept

        kept = others_kept(self)
        found = [] if not kept else [f"{self.out} keeps {', '.join(kept)}; {self.graph_file} is added"]
        tokenizer = self.model.tokenizer
        limits = GENAI if self.options.flavour == "genai" else TRANSFORMERS_JS
        found += [*_browser_remarks(self), *_old_releases(self)]
        return (*found, *tokenizer.notes, *token_remarks(tokenizer, limits))

    def for_method(self, method: Method) -> OnnxExport:  # noqa: ARG002 (formats are the same for all)
        return self

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What a format can be chosen for."""
        return _slots(self.model, self.formats, self.options)

    def with_allocation(self, allocation: Allocation) -> OnnxExport:
        """The plan in formats that were chosen for each matrix."""
        return prepare(self.model, self.recipe, out=self.out, options=self.options, allocation=allocation)

    def with_recipe(self, recipe: Recipe) -> OnnxExport:
        """The plan with another recipe."""
        return prepare(self.model, recipe, out=self.out, options=self.options)

    def rows(self) -> Iterator[str]:
        """Type, shape, size and name of each initializer, then the data file."""
        for parts in self.plan.initializers.values():
            for place in parts.values():
                size = human_size(place.num_bytes)
                yield f"{place.dtype.strip('<|'):3} {list(place.shape)!s:22} {size:>10}  {place.name}"
        yield ""
        for name, num_bytes in zip(self.data_files, self.plan.file_bytes, strict=True):
            yield f"{human_size(num_bytes):>10}  {self.out / name}"

    def written(self) -> Written:
        folder = shlex.quote(str(self.out))
        if self.options.flavour == "genai":
            run_it = f"python -c \"import onnxruntime_genai as og; og.Model('{self.out}')\", or any genai app"
        else:
            run_it = f"pipeline('text-generation', {folder!r}, {{ dtype: '{self.js_dtype}' }}) in transformers.js"
        parts = (f"{self.out} ({human_size(self.num_bytes)} of weights)",)
        return Written(parts=parts, bits_per_weight=self.bits_per_weight, run_it=run_it)


def default_path(model: Model, recipe: Recipe, flavour: Flavour) -> Path:
    """``Qwen3-1.7B-onnx-int4`` in the current folder."""
    return Path(f"{model.name}-{'onnx' if flavour == 'genai' else 'transformers.js'}-{recipe.name}")


def prepare(
    model: Model,
    recipe: Recipe,
    *,
    out: Path | None = None,
    options: OnnxOptions | None = None,
    allocation: Allocation | None = None,
) -> OnnxExport:
    """Choose every weight's format, round to nearest, and lay out the data file.

    ``allocation`` has formats for its matrices, instead of the recipe's. Raises QuantizationError for what onnxruntime
    cannot multiply, MissingExtraError without onnx-ir.
    """
    _require_onnx_ir()
    config, options = model.graph.config, options or OnnxOptions()
    if config.is_moe and recipe.float_type == "F16":
        raise QuantizationError(
            f"`recipe` {recipe.name}: onnxruntime's CPU has no fp16 mixture of experts, so that nothing could be "
            "checked; use fp32, int8 or int4"
        )
    context_length = _context_length(config, options)
    formats = assign(model.graph, recipe, group_size=options.group_size, is_symmetric=not options.asymmetric)
    slots = _slots(model, formats, options)
    if allocation is None and options.allocation is not None:
        allocation = read_allocation(options.allocation, target=ONNX.name, slots=slots)
    if allocation is not None:
        formats = {**formats, **chosen_formats(slots, allocation)}
    caches = rope_caches(config, length=context_length, float_type=recipe.float_type)
    most_bytes = BROWSER_FILE_BYTES if options.flavour == "transformers.js" else None
    return OnnxExport(
        model=model,
        recipe=recipe,
        options=options,
        graph=round_graph(model.graph, formats),
        out=out or default_path(model, recipe, options.flavour),
        formats=formats,
        plan=plan_data(model.graph, stored_matrices(config, formats), caches, most_bytes=most_bytes),
        context_length=context_length,
        allocation=allocation,
    )


def _slots(model: Model, formats: Mapping[str, OnnxFormat], options: OnnxOptions) -> tuple[Slot, ...]:
    """What formats can be chosen for; ``formats`` are the recipe's."""
    is_for_browsers = options.flavour == "transformers.js"
    return slots_of(model.graph, formats, is_for_browsers=is_for_browsers, accuracy_level=options.accuracy_level)


def with_solution(export: OnnxExport, solution: Solution) -> OnnxExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    return replace(export, graph=solution.graph, solution=solution)


def write(
    export: OnnxExport,
    *,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Write the folder; it appears under its name when it is whole.

    A folder for transformers.js that holds other number types of the same model keeps them. Otherwise ``overwrite``
    replaces an earlier export, and no folder that holds anything else.
    Raises CheckpointError for weights that cannot be read or are not finite, OutputError for a full disk and
    for a place that is taken.
    """
    from qwen3_export.targets.onnx.emit import write_data
    from qwen3_export.targets.onnx.shelf import keep_others, may_replace

    inputs, may_go = export.model.files(), may_replace(export, overwrite=overwrite)
    with partial_folder(export.out, overwrite=may_go, is_ours=is_export_file, inputs=inputs) as folder:
        data = [folder / name for name in export.data_files]
        data[0].parent.mkdir(exist_ok=True)
        with partial_files(list(zip(data, export.plan.file_bytes, strict=True))) as descriptors:
            write_data(descriptors, export.graph, export.plan, threads=threads, progress=progress)
        _write_bytes(folder / export.graph_file, graph_bytes(export))
        for name, content in _documents(export).items():
            _write_bytes(folder / name, content)
        keep_others(export, folder)


def graph_bytes(export: OnnxExport, *, accuracy_level: int | None = None) -> bytes:
    """The graph as protobuf, with its weights in the data file."""
    return bytes(graph_proto(export, accuracy_level=accuracy_level).SerializeToString())


def graph_proto(export: OnnxExport, *, accuracy_level: int | None = None) -> ModelProto:
    """The graph, with its weights in the data file."""
    import onnx_ir as ir

    from qwen3_export.targets.onnx.graph import GraphOptions, build_model

    options = GraphOptions(
        float_type=export.recipe.float_type,
        accuracy_level=export.options.accuracy_level if accuracy_level is None else accuracy_level,
        is_for_browsers=export.options.flavour == "transformers.js",
        data_files=tuple(Path(name).name for name in export.data_files),
    )
    metadata = describe(
        model=export.model.name,
        recipe=export.recipe.name,
        flavour=export.options.flavour,
        solution=export.solution,
        allocation=record_of(export.allocation),
    )
    model = build_model(export.graph.config, export.plan, options, metadata=metadata)
    return ir.to_proto(model)


def is_export_file(name: str) -> bool:
    """Whether an export writes a file of this name, which is its path within the folder."""
    known = {"model.onnx", "model.onnx.data", "genai_config.json"}
    is_known = name in known | REPORT_FILES | {*TOKENIZER_DOCUMENTS, *MODEL_FILES}
    return is_known or any(pattern.fullmatch(name) for pattern in JS_FILES)


def _documents(export: OnnxExport) -> dict[str, bytes]:
    """The small text files beside the graph."""
    from qwen3_export.targets.onnx.genai_config import build_genai_config
    from qwen3_export.targets.onnx.transformers_js import JavascriptGraph, build_config, build_generation_config

    is_genai = export.options.flavour == "genai"
    found = tokenizer_documents(export.model, is_for_genai=is_genai)
    if is_genai:
        document = build_genai_config(export.model, graph_file=export.graph_file, context_length=export.context_length)
        return {**found, "genai_config.json": _json(document)}
    graph = JavascriptGraph(
        file=export.graph_file,
        dtype=export.js_dtype,
        num_data_files=len(export.data_files),
        has_fp16_cache=export.recipe.float_type == "F16",
    )
    return {
        **found,
        "config.json": _json(build_config(export.model, graph, context_length=export.context_length)),
        "generation_config.json": _json(build_generation_config(export.model)),
    }


def _context_length(config: Qwen3Config, options: OnnxOptions) -> int:
    """As asked for, and not more than the model has."""
    longest = config.context_length
    if options.context_length is None:
        return min(CONTEXT_LENGTH, longest)
    if options.context_length > longest:
        raise OptionError(f"`context_length` {options.context_length}: the model's context ends at {longest:,} tokens")
    return options.context_length


def _browser_remarks(export: OnnxExport) -> Iterator[str]:
    """What browsers make of so many bytes."""
    if export.options.flavour != "transformers.js":
        return
    sizes = export.plan.file_bytes
    if export.num_bytes > BROWSER_BYTES:
        yield (
            f"{human_size(export.num_bytes)} of weights is more than the 4 GiB that WebAssembly has: this folder is "
            "for Node; for a browser, use fewer bits"
        )
    elif max(sizes) > BROWSER_FILE_BYTES:
        yield (
            f"a weight of {human_size(max(sizes))} is larger than the 2 GB that a browser fetches in one piece: this "
            "folder is for Node; for a browser, use fewer bits"
        )
    elif len(sizes) > 1:
        yield f"the weights are in {len(sizes)} files, because a browser fetches 2 GB in one piece at most"


def _old_releases(export: OnnxExport) -> Iterator[str]:
    """Which releases of onnxruntime and transformers.js are too old for the graph."""
    from qwen3_export.targets.onnx.versions import needed_sentences

    is_for_browsers = export.options.flavour == "transformers.js"
    for text, _ in needed_sentences(graph_proto(export).graph, is_for_browsers=is_for_browsers):
        yield f"this graph {text}"
    if not export.options.chooses_formats:
        return
    slots = export.slots
    bits = {found.num_bits for slot in slots for found in slot.formats.values() if isinstance(found, AffineFormat)}
    if 2 in bits:
        yield "if matrices of 2 bits are chosen, it needs onnxruntime 1.24 or newer, and is slow before 1.29"
    if 8 in bits and is_for_browsers:
        yield "if matrices of 8 bits are chosen, it needs transformers.js 4.0 or newer"


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _require_onnx_ir() -> None:
    try:
        import onnx_ir  # noqa: F401 (its absence is the finding)
    except ImportError as error:
        raise MissingExtraError(package="onnx-ir", extra="onnx", purpose="writing an ONNX graph") from error
