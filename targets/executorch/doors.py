"""The doors of the ExecuTorch target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.calibration.solving import Method
from qwen3_export.checkpoint.model import Model
from qwen3_export.files.atomic import check_output_folder
from qwen3_export.graph import Graph
from qwen3_export.progress import Progress
from qwen3_export.targets.allocating import check_request, largest
from qwen3_export.targets.defaults import before_check, cost_of, measured
from qwen3_export.targets.executorch.check import open_subject, program_path
from qwen3_export.targets.executorch.export import ExecutorchExport, is_export_file, prepare, with_solution
from qwen3_export.targets.executorch.export import write as write_folder
from qwen3_export.targets.executorch.generate import generate
from qwen3_export.targets.executorch.inspect import inspect
from qwen3_export.targets.executorch.lint import lint_executorch
from qwen3_export.targets.executorch.recipes import RECIPES, find_recipe, untied
from qwen3_export.targets.executorch.stored import read_index, read_weights
from qwen3_export.targets.executorch.target import EXECUTORCH, ExecutorchOptions
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


FLOAT_BITS = 32


def plan(
    model: Model, recipe: str, *, out: Path | None, options: ExecutorchOptions, method: Method
) -> ExecutorchExport:
    found = prepare(model, find_recipe(recipe), out=out, options=options).for_method(method)
    check_request(found)
    return found


def fitting(plan: ExecutorchExport, num_bytes: int) -> ExecutorchExport | None:
    """The largest recipe with quantized weights that takes at most so many bytes."""
    recipes = (recipe for recipe in RECIPES.values() if recipe.weight_bits != FLOAT_BITS)
    return largest(map(plan.with_recipe, recipes), num_bytes)


def check_place(plan: ExecutorchExport, *, overwrite: bool) -> None:
    check_output_folder(plan.out, overwrite=overwrite, is_ours=is_export_file, inputs=plan.model.files())


def write(plan: ExecutorchExport, *, overwrite: bool, threads: int | None, progress: Progress) -> Path:
    del threads  # torch's are set for the whole process
    progress.say("lowering to XNNPACK; this takes some seconds a layer")
    write_folder(plan, overwrite=overwrite)
    return plan.out


def costs(model: Model) -> Iterator[RecipeCost]:
    shortest = ExecutorchOptions(max_seq_len=2)
    for recipe in RECIPES.values():
        if not (model.graph.config.is_moe and recipe.weight_bits == 32):
            yield cost_of(prepare(model, recipe, options=shortest), bytes_per_cached_value=4)


def read(path: Path, graph: Graph) -> Graph:
    """The graph of an untied model: the program stores the head apart from the embedding."""
    folder = path if path.is_dir() else path.parent
    return read_weights(program_path(path), untied(graph), read_index(folder))


def lint(path: Path, model: Model) -> tuple[tuple[str, ...], Iterator[Finding]]:
    return EXECUTORCH.consumers, lint_executorch(path, model.graph, model.tokenizer)
