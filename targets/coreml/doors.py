"""The doors of the Core ML target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from qwen3_export.calibration.solving import Method
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import QuantizationError
from qwen3_export.files.atomic import check_output_folder
from qwen3_export.graph import Graph
from qwen3_export.progress import Progress
from qwen3_export.targets.allocating import check_request, largest
from qwen3_export.targets.coreml.check import open_subject
from qwen3_export.targets.coreml.export import CoremlExport, is_export_file, prepare, with_solution
from qwen3_export.targets.coreml.export import write as write_folder
from qwen3_export.targets.coreml.generate import generate
from qwen3_export.targets.coreml.inspect import inspect
from qwen3_export.targets.coreml.lint import lint_coreml
from qwen3_export.targets.coreml.read import open_coreml, read_graph
from qwen3_export.targets.coreml.recipes import RECIPES, find_recipe
from qwen3_export.targets.coreml.target import COREML, GROUP_SIZES, CoremlOptions
from qwen3_export.targets.coreml.transcript import write_transcript
from qwen3_export.targets.defaults import cost_of, measured
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


def plan(model: Model, recipe: str, *, out: Path | None, options: CoremlOptions, method: Method) -> CoremlExport:
    found = prepare(model, find_recipe(recipe), out=out, options=options).for_method(method)
    check_request(found)
    return found


def fitting(plan: CoremlExport, num_bytes: int) -> CoremlExport | None:
    """The largest recipe for the same processor whose weights take at most so many bytes."""
    return largest(_alike(plan), num_bytes)


def _alike(plan: CoremlExport) -> Iterator[CoremlExport]:
    """What the recipes for the same processor make of the model; blocks of the planned size and of larger ones."""
    sizes = [size for size in GROUP_SIZES if size >= plan.options.group_size] if plan.has_blocks else [None]
    for recipe in RECIPES.values():
        for size in sizes if recipe.is_quantized else ():
            with suppress(QuantizationError):  # blocks that do not divide rows, tables that parts of a head cut through
                found = plan.with_recipe(recipe, group_size=size)
                if found.has_blocks == plan.has_blocks:
                    yield found


def check_place(plan: CoremlExport, *, overwrite: bool) -> None:
    check_output_folder(plan.out, overwrite=overwrite, is_ours=is_export_file, inputs=plan.model.files())


def write(plan: CoremlExport, *, overwrite: bool, threads: int | None, progress: Progress) -> Path:
    with progress.bar("writing", plan.num_weights) as advance:
        write_folder(plan, overwrite=overwrite, threads=threads, progress=advance)
    return plan.out


def costs(model: Model) -> Iterator[RecipeCost]:
    for recipe in RECIPES.values():
        yield cost_of(prepare(model, recipe), bytes_per_cached_value=2)


def before_check(path: Path, model: Model) -> None:
    """The transcript that a Mac can confirm."""
    write_transcript(path, model)


def read(path: Path, graph: Graph) -> Graph:
    return read_graph(open_coreml(path), graph)


def lint(path: Path, model: Model) -> tuple[tuple[str, ...], Iterator[Finding]]:
    return COREML.consumers, lint_coreml(path, model.graph, model.tokenizer)
