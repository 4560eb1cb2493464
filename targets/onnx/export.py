"""One ONNX export from options to plan, and the plan to a folder.

Everything that can be refused is refused in ``prepare``, before a byte is written.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.calibration.provenance import describe
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import MissingExtraError, QuantizationError
from qwen3_export.files.atomic import partial_file, partial_folder
from qwen3_export.graph import Graph
from qwen3_export.parity.tokenization import GENAI, TRANSFORMERS_JS, token_remarks
from qwen3_export.quantizers.weights.rounding import round_graph
from qwen3_export.targets.documents import TOKENIZER_DOCUMENTS, tokenizer_documents
from qwen3_export.targets.onnx.layout import DataPlan, plan_data, stored_matrices
from qwen3_export.targets.onnx.names import rope_caches
from qwen3_export.targets.onnx.recipes import OnnxFormat, Recipe, assign
from qwen3_export.targets.onnx.target import Flavour, OnnxOptions
from qwen3_export.targets.target import REPORT_FILES, Written
from qwen3_export.units import human_size

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Method, Solution

__all__ = ["OnnxExport", "default_path", "is_export_file", "prepare", "with_solution", "write"]

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
    solution: Solution | None = None

    @property
    def graph_file(self) -> str:
        """Relative to the folder."""
        return "model.onnx" if self.options.flavour == "genai" else f"onnx/model{JS_SUFFIXES[self.recipe.name]}.onnx"

    @property
    def data_file(self) -> str:
        return self.graph_file + (".data" if self.options.flavour == "genai" else "_data")

    @property
    def js_dtype(self) -> str:
        """What transformers.js calls this number type."""
        return JS_DTYPES[self.recipe.name]

    @property
    def num_bytes(self) -> int:
        return self.plan.num_bytes

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
        return self.out / "report.json"

    @property
    def remarks(self) -> tuple[str, ...]:
        tokenizer = self.model.tokenizer
        limits = GENAI if self.options.flavour == "genai" else TRANSFORMERS_JS
        return (*tokenizer.notes, *token_remarks(tokenizer, limits))

    def for_method(self, method: Method) -> OnnxExport:  # noqa: ARG002 (formats are the same for all)
        return self

    def rows(self) -> Iterator[str]:
        """Type, shape, size and name of each initializer, then the data file."""
        for parts in self.plan.initializers.values():
            for place in parts.values():
                size = human_size(place.num_bytes)
                yield f"{place.dtype.strip('<|'):3} {list(place.shape)!s:22} {size:>10}  {place.name}"
        yield ""
        yield f"{human_size(self.num_bytes):>10}  {self.out / self.data_file}"

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


def prepare(model: Model, recipe: Recipe, *, out: Path | None = None, options: OnnxOptions | None = None) -> OnnxExport:
    """Choose every weight's format, round to nearest, and lay out the data file.

    Raises QuantizationError for what onnxruntime cannot multiply, MissingExtraError without onnx-ir.
    """
    _require_onnx_ir()
    config, options = model.graph.config, options or OnnxOptions()
    if config.is_moe and recipe.float_type == "F16":
        raise QuantizationError(
            f"`recipe` {recipe.name}: onnxruntime's CPU has no fp16 mixture of experts, so that nothing could be "
            "checked; use fp32, int8 or int4"
        )
    formats = assign(model.graph, recipe, block_size=options.group_size, is_symmetric=not options.asymmetric)
    caches = rope_caches(config, length=config.max_position_embeddings, float_type=recipe.float_type)
    return OnnxExport(
        model=model,
        recipe=recipe,
        options=options,
        graph=round_graph(model.graph, formats),
        out=out or default_path(model, recipe, options.flavour),
        formats=formats,
        plan=plan_data(model.graph, stored_matrices(config, formats), caches),
    )


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

    With ``overwrite`` it replaces an earlier export, and no folder that holds anything else.
    Raises CheckpointError for weights that cannot be read or are not finite, OutputError for a full disk and
    for a place that is taken.
    """
    from qwen3_export.targets.onnx.emit import write_data

    inputs = export.model.files()
    with partial_folder(export.out, overwrite=overwrite, is_ours=is_export_file, inputs=inputs) as folder:
        data = folder / export.data_file
        data.parent.mkdir(exist_ok=True)
        with partial_file(data, num_bytes=export.num_bytes) as descriptor:
            write_data(descriptor, export.graph, export.plan, threads=threads, progress=progress)
        _write_bytes(folder / export.graph_file, graph_bytes(export))
        for name, content in _documents(export).items():
            _write_bytes(folder / name, content)


def graph_bytes(export: OnnxExport, *, accuracy_level: int | None = None) -> bytes:
    """The graph as protobuf, with its weights in the data file."""
    import onnx_ir as ir

    from qwen3_export.targets.onnx.graph import GraphOptions, build_model

    options = GraphOptions(
        float_type=export.recipe.float_type,
        accuracy_level=export.options.accuracy_level if accuracy_level is None else accuracy_level,
        has_position_ids=export.options.flavour == "transformers.js",
        data_file=Path(export.data_file).name,
    )
    metadata = describe(
        model=export.model.name, recipe=export.recipe.name, flavour=export.options.flavour, solution=export.solution
    )
    model = build_model(export.graph.config, export.plan, options, metadata=metadata)
    return bytes(ir.to_proto(model).SerializeToString())


def is_export_file(name: str) -> bool:
    """Whether an export writes a file of this name, which is its path within the folder."""
    graphs = {f"onnx/model{suffix}.onnx" for suffix in JS_SUFFIXES.values()}
    weights = {f"{graph}_data" for graph in graphs}
    known = {"model.onnx", "model.onnx.data", "genai_config.json"}
    return name in known | REPORT_FILES | graphs | weights | {*TOKENIZER_DOCUMENTS, *MODEL_FILES}


def _documents(export: OnnxExport) -> dict[str, bytes]:
    """The small text files beside the graph."""
    from qwen3_export.targets.onnx.genai_config import build_genai_config
    from qwen3_export.targets.onnx.transformers_js import build_config, build_generation_config

    is_genai = export.options.flavour == "genai"
    found = tokenizer_documents(export.model, is_for_genai=is_genai)
    if is_genai:
        return {**found, "genai_config.json": _json(build_genai_config(export.model, graph_file=export.graph_file))}
    config = build_config(export.model, graph_file=export.graph_file, has_fp16_cache=export.recipe.float_type == "F16")
    return {
        **found,
        "config.json": _json(config),
        "generation_config.json": _json(build_generation_config(export.model)),
    }


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
