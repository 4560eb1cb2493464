"""The doors of the ONNX target."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwen3_export.calibration.solving import Method
from qwen3_export.checkpoint.model import Model
from qwen3_export.graph import Graph
from qwen3_export.progress import Progress
from qwen3_export.targets.allocating import check_request, largest
from qwen3_export.targets.defaults import before_check, cost_of, measured
from qwen3_export.targets.lint import Finding
from qwen3_export.targets.onnx.check import open_subject
from qwen3_export.targets.onnx.export import OnnxExport, graph_proto, prepare, with_solution
from qwen3_export.targets.onnx.export import write as write_folder
from qwen3_export.targets.onnx.generate import generate
from qwen3_export.targets.onnx.inspect import inspect
from qwen3_export.targets.onnx.lint import consumers_of, lint_onnx
from qwen3_export.targets.onnx.read import open_onnx, read_graph
from qwen3_export.targets.onnx.recipes import RECIPES, find_recipe
from qwen3_export.targets.onnx.shelf import check_place, others_kept
from qwen3_export.targets.onnx.target import OnnxOptions
from qwen3_export.targets.onnx.versions import find_needs, oldest_javascript, oldest_runtime
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


def plan(model: Model, recipe: str, *, out: Path | None, options: OnnxOptions, method: Method) -> OnnxExport:
    found = prepare(model, find_recipe(recipe), out=out, options=options).for_method(method)
    check_request(found)
    return found


def fitting(plan: OnnxExport, num_bytes: int) -> OnnxExport | None:
    """The largest recipe with quantized weights and the same float type that takes at most so many bytes."""
    recipes = (
        recipe for recipe in RECIPES.values() if recipe.is_quantized and recipe.float_type == plan.recipe.float_type
    )
    return largest(map(plan.with_recipe, recipes), num_bytes)


def write(plan: OnnxExport, *, overwrite: bool, threads: int | None, progress: Progress) -> Path:
    with progress.bar("writing", plan.num_weights) as advance:
        write_folder(plan, overwrite=overwrite, threads=threads, progress=advance)
    return plan.out / plan.graph_file if others_kept(plan) else plan.out


def costs(model: Model) -> Iterator[RecipeCost]:
    for recipe in RECIPES.values():
        if not (model.graph.config.is_moe and recipe.float_type == "F16"):
            plan = prepare(model, recipe)
            found = cost_of(plan, bytes_per_cached_value=4 if recipe.float_type == "F32" else 2)
            yield replace(found, description=f"{found.description} ({_oldest_releases(plan)})")


def _oldest_releases(plan: OnnxExport) -> str:
    """The oldest releases that run a recipe, each in its own flavour."""
    for_browsers = prepare(plan.model, plan.recipe, options=OnnxOptions(flavour="transformers.js"))
    genai, javascript = (find_needs(graph_proto(export).graph) for export in (plan, for_browsers))
    release = oldest_javascript(javascript)
    browsers = "no transformers.js" if release is None else f"transformers.js {release}"
    return f"onnxruntime {oldest_runtime(genai)}, {browsers}"


def read(path: Path, graph: Graph) -> Graph:
    return read_graph(open_onnx(path), graph)


def lint(path: Path, model: Model) -> tuple[tuple[str, ...], Iterator[Finding]]:
    consumers = consumers_of(path)
    return consumers, lint_onnx(path, model.graph, model.tokenizer, consumers=consumers)
