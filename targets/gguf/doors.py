"""The doors of the GGUF target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.calibration.key_balance import balance_keys
from qwen3_export.calibration.solving import Method
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.model import Model
from qwen3_export.files.atomic import check_output, write_text
from qwen3_export.files.recognise import is_gguf_model, is_modelfile
from qwen3_export.graph import Graph
from qwen3_export.progress import Progress
from qwen3_export.targets.allocating import check_request, largest
from qwen3_export.targets.defaults import before_check
from qwen3_export.targets.gguf.check import open_subject
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import GgufExport, prepare, refuse_imatrix, with_solution
from qwen3_export.targets.gguf.formats import FORMATS
from qwen3_export.targets.gguf.generate import generate
from qwen3_export.targets.gguf.inspect import inspect
from qwen3_export.targets.gguf.lint import lint_gguf
from qwen3_export.targets.gguf.modelfile import build_modelfile
from qwen3_export.targets.gguf.names import check_representable, gguf_tensors
from qwen3_export.targets.gguf.read import open_gguf, read_graph
from qwen3_export.targets.gguf.recipes import RECIPES, assign, find_recipe
from qwen3_export.targets.gguf.sizes import bits_per_weight, total_bytes
from qwen3_export.targets.gguf.target import GGUF, GgufOptions
from qwen3_export.targets.lint import Finding
from qwen3_export.targets.target import RecipeCost

__all__ = [
    "before_check",
    "check_place",
    "costs",
    "fitting",
    "generate",
    "inspect",
    "lint",
    "measured",
    "open_subject",
    "plan",
    "read",
    "with_solution",
    "write",
]

NEEDS = " (needs `imatrix`, or a calibrated `method`)"


def plan(model: Model, recipe: str, *, out: Path | None, options: GgufOptions, method: Method) -> GgufExport:
    refuse_imatrix(options, method)
    found = prepare(model, find_recipe(recipe), out=out, options=options, is_calibrated=method != "rtn")
    check_request(found)
    return found


def fitting(plan: GgufExport, num_bytes: int) -> GgufExport | None:
    """The largest recipe whose formats can be chosen, and whose file has at most so many bytes."""
    recipes = (recipe for recipe in RECIPES.values() if not FORMATS[recipe.base].is_float and not recipe.needs_imatrix)
    return largest(map(plan.with_recipe, recipes), num_bytes)


def measured(plan: GgufExport, text: Calibration, *, progress: Progress) -> GgufExport:
    """Scales between q_norm and k_norm, under which a quantized cache of keys loses less."""
    if not plan.options.balance_keys:
        return plan
    graph = plan.checkpoint.graph
    with progress.bar("measuring keys", graph.config.num_hidden_layers) as advance:
        scales = balance_keys(graph, text.windows, progress=lambda _done, _total: advance(1))
    return plan.with_scales(scales)


def check_place(plan: GgufExport, *, overwrite: bool) -> None:
    for file in plan.files:
        check_output(file.path, overwrite=overwrite, is_ours=is_gguf_model, inputs=plan.inputs)
    if plan.modelfile is not None:
        check_output(plan.modelfile, overwrite=overwrite, is_ours=is_modelfile, inputs=plan.inputs)


def write(plan: GgufExport, *, overwrite: bool, threads: int | None, progress: Progress) -> Path:
    with progress.bar("writing", plan.num_weights) as advance:
        emit(plan.files, overwrite=overwrite, inputs=plan.inputs, threads=threads, progress=advance)
    if plan.modelfile is not None:
        text = build_modelfile(plan.model, [file.path for file in plan.files])
        write_text(plan.modelfile, text, overwrite=overwrite, is_ours=is_modelfile, inputs=plan.inputs)
    return plan.files[0].path


def costs(model: Model) -> Iterator[RecipeCost]:
    """Sizes of the tensors alone: what a file holds beside them is the tokenizer."""
    config = model.graph.config
    check_representable(config)
    tensors = gguf_tensors(model.graph)
    for recipe in RECIPES.values():
        formats = assign(recipe, config, tensors, has_imatrix=recipe.needs_imatrix)
        yield RecipeCost(
            name=recipe.name,
            description=recipe.description + (NEEDS if recipe.needs_imatrix else ""),
            bits_per_weight=bits_per_weight(tensors, formats),
            num_bytes=total_bytes(tensors, formats),
            bytes_per_cached_value=2,
        )


def read(path: Path, graph: Graph) -> Graph:
    return read_graph(open_gguf(path), graph)


def lint(path: Path, model: Model) -> tuple[tuple[str, ...], Iterator[Finding]]:
    return GGUF.consumers, lint_gguf(path, model.graph, model.tokenizer)
