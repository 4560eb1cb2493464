"""Plan a Core ML export, and write the folder.

Everything that can be refused is refused in ``prepare``, before a byte is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.calibration.provenance import describe, record_bytes
from qwen3_export.checkpoint.model import Model
from qwen3_export.config import Qwen3Config
from qwen3_export.errors import OptionError, UnsupportedModelError
from qwen3_export.files.atomic import partial_file, partial_folder
from qwen3_export.graph import Graph
from qwen3_export.parallel import default_threads
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.allocating import Allocation, Slot, chosen_formats, read_allocation, record_of
from qwen3_export.targets.coreml.documents import COREML_DOCUMENTS, coreml_documents, end_remarks
from qwen3_export.targets.coreml.extra import require_coremltools
from qwen3_export.targets.coreml.layout import WeightPlan, plan_weights, stored_matrices
from qwen3_export.targets.coreml.names import MODEL_FILE, PACKAGE, WEIGHT_FILE
from qwen3_export.targets.coreml.program import ProgramOptions, build_program, constants
from qwen3_export.targets.coreml.recipes import CoremlFormat, Recipe, assign
from qwen3_export.targets.coreml.slots import slots_of
from qwen3_export.targets.coreml.target import COREML, CoremlOptions
from qwen3_export.targets.target import REPORT_FILES, Written
from qwen3_export.units import human_size

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Method, Solution

__all__ = ["CoremlExport", "default_path", "is_export_file", "prepare", "with_solution", "write"]

DEFAULT_CONTEXT = 2048
# swift-transformers wants a range of lengths, and stops the app where the largest is not above 2.
LEAST_CONTEXT = 3


# Python, torch, coremltools and the program; and what a thread holds of one block of rows.
BASE_BYTES, BYTES_A_THREAD = 800_000_000, 40_000_000

# What a choice of formats may add to the program: its record, and other arrays for a weight than the recipe's.
RECORD_BYTES, BYTES_A_WEIGHT = 2048, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlExport:
    """An export that is ready to be written; ``formats`` by weight name, ``graph`` with the stored values."""

    model: Model
    recipe: Recipe
    graph: Graph
    out: Path
    formats: Mapping[str, CoremlFormat]
    options: CoremlOptions
    program: ProgramOptions
    plan: WeightPlan
    allocation: Allocation | None = None
    solution: Solution | None = None

    @property
    def package(self) -> Path:
        return self.out / PACKAGE

    @property
    def context_length(self) -> int:
        return self.program.context_length

    @property
    def weight_formats(self) -> Mapping[str, CoremlFormat]:
        return self.formats

    @property
    def num_bytes(self) -> int:
        """Of weight.bin; the program beside it is a few megabytes.

        Where formats are chosen, what the program may grow by counts too: no package is larger than the recipe's.
        """
        grown = 0 if self.allocation is None else RECORD_BYTES + BYTES_A_WEIGHT * len(self.plan.matrices)
        return self.plan.num_bytes + grown

    @property
    def num_weights(self) -> int:
        """Weights as they are stored, a split head's twice where it is tied: what ``write`` counts."""
        return sum(_count(matrix.shape) for matrix in self.plan.matrices.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of stored weights over the checkpoint's number of them."""
        stored = sum(blob.num_bytes for parts in self.plan.parts.values() for blob in parts.values())
        return 8 * stored / self.graph.num_parameters

    @property
    def memory_bytes(self) -> int:
        """What writing holds, about: 0.86 GB were measured at 0.6B's shapes, and it does not grow with the model."""
        return BASE_BYTES + default_threads() * BYTES_A_THREAD

    @property
    def report(self) -> Path:
        return self.out / "report.json"

    @property
    def remarks(self) -> tuple[str, ...]:
        tokenizer = self.model.tokenizer
        told = f"writing takes about {human_size(self.memory_bytes)} of memory"
        return (*tokenizer.notes, *end_remarks(tokenizer), told)

    def for_method(self, method: Method) -> CoremlExport:  # noqa: ARG002 (formats are the same for all)
        return self

    @property
    def has_blocks(self) -> bool:
        """Whether weights are integers in blocks, for GPUs; other formats are for the Neural Engine."""
        return self.recipe.has_blocks and not self.options.channelwise

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What a format can be chosen for."""
        return slots_of(self.graph, self.formats, tuple(self.plan.matrices.values()), has_blocks=self.has_blocks)

    @property
    def beside_bytes(self) -> int:
        """The program, and records of a solver and of tuning."""
        return len(program_bytes(self)) + record_bytes(self.graph) + RECORD_BYTES

    def with_allocation(self, allocation: Allocation) -> CoremlExport:
        """The plan in formats that were chosen for each weight."""
        return prepare(self.model, self.recipe, out=self.out, options=self.options, allocation=allocation)

    def with_recipe(self, recipe: Recipe, *, group_size: int | None = None) -> CoremlExport:
        """The plan with another recipe, or with blocks of another size."""
        options = self.options if group_size is None else replace(self.options, group_size=group_size)
        return prepare(self.model, recipe, out=self.out, options=options)

    def rows(self) -> Iterator[str]:
        """Format, shape and name of each weight, then the package."""
        for name, number_format in self.formats.items():
            shape = list(self.graph.weights[name].shape)
            yield f"{number_format.name:16} {shape!s:18} {name}"
        yield ""
        yield f"{human_size(self.num_bytes):>10}  {self.package}"

    def written(self) -> Written:
        return Written(
            parts=(f"{self.out} ({self.package.name}: {human_size(self.num_bytes)})",),
            bits_per_weight=self.bits_per_weight,
            run_it="with swift-transformers, or your own app; docs/coreml.md has the lines of Swift",
        )


def default_path(model: Model, recipe: Recipe) -> Path:
    """``Qwen3-0.6B-coreml-int4`` in the current folder."""
    return Path(f"{model.name}-coreml-{recipe.name}")


def prepare(
    model: Model,
    recipe: Recipe,
    *,
    out: Path | None = None,
    options: CoremlOptions | None = None,
    allocation: Allocation | None = None,
) -> CoremlExport:
    """Choose every weight's format, round to nearest, and lay out weight.bin.

    ``allocation`` has formats for its weights, instead of the recipe's.
    Raises QuantizationError for what Core ML does not store and for a context that the model does not have,
    UnsupportedModelError for mixtures of experts, MissingExtraError without coremltools.
    """
    require_coremltools("writing a Core ML package")
    config, options = model.graph.config, options or CoremlOptions()
    if config.is_moe:
        size = human_size(_gathered_bytes(config))
        raise UnsupportedModelError(
            f"{model.name}: a mixture of experts cannot be exported to Core ML: gathering experts takes {size} for "
            "each token of a prompt (docs/coreml.md); use gguf, onnx or executorch"
        )
    longest = config.context_length
    context = min(DEFAULT_CONTEXT, longest) if options.context_length is None else options.context_length
    if not LEAST_CONTEXT <= context <= longest:
        raise OptionError(f"`context_length` {context}: must be from {LEAST_CONTEXT} to the model's {longest}")
    program = ProgramOptions(
        float_type=recipe.float_type,
        context_length=context,
        has_fused_attention=options.fused_attention,
        mask=options.mask,
    )
    formats = assign(model.graph, recipe, group_size=options.group_size, channelwise=options.channelwise)
    planned = _laid_out(model, recipe, formats, out=out, options=options, program=program)
    if allocation is None and options.allocation is not None:
        allocation = read_allocation(options.allocation, target=COREML.name, slots=planned.slots)
    if allocation is None:
        return planned
    formats |= chosen_formats(planned.slots, allocation)
    chosen = _laid_out(model, recipe, formats, out=out, options=options, program=program)
    return replace(chosen, allocation=allocation)


def _laid_out(
    model: Model,
    recipe: Recipe,
    formats: Mapping[str, CoremlFormat],
    *,
    out: Path | None,
    options: CoremlOptions,
    program: ProgramOptions,
) -> CoremlExport:
    """The export in these formats."""
    matrices = stored_matrices(model.graph, formats, head_rows=options.split_lm_head)
    out_features = [matrix.shape[0] for matrix in matrices if len(matrix.shape) > 1]
    return CoremlExport(
        model=model,
        recipe=recipe,
        graph=round_graph(model.graph, formats),
        out=out or default_path(model, recipe),
        formats=formats,
        options=options,
        program=program,
        plan=plan_weights(matrices, constants(model.graph.config, program, out_features=out_features)),
    )


def with_solution(export: CoremlExport, solution: Solution) -> CoremlExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    return replace(export, graph=solution.graph, solution=solution)


def write(
    export: CoremlExport,
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
    from qwen3_export.targets.coreml.emit import write_weights
    from qwen3_export.targets.coreml.serialize import manifest_text

    inputs = export.model.files()
    with partial_folder(export.out, overwrite=overwrite, is_ours=is_export_file, inputs=inputs) as folder:
        package = folder / PACKAGE
        weights = package / WEIGHT_FILE
        weights.parent.mkdir(parents=True)
        with partial_file(weights, num_bytes=export.plan.num_bytes) as descriptor:
            write_weights(descriptor, export.graph, export.plan, threads=threads, progress=progress)
        _write_bytes(package / MODEL_FILE, program_bytes(export))
        _write_bytes(package / "Manifest.json", manifest_text().encode())
        for name, content in coreml_documents(export.model).items():
            _write_bytes(folder / name, content)


def program_bytes(export: CoremlExport) -> bytes:
    """model.mlmodel, its weights in weight.bin."""
    from qwen3_export.targets.coreml.serialize import model_bytes

    config, model = export.graph.config, export.model
    program = build_program(config, export.plan, export.program)
    metadata = {
        "co.huggingface.exporters.name": model.source,
        "co.huggingface.exporters.task": "text-generation",
        "co.huggingface.exporters.architecture": "Qwen3ForCausalLM",
        **describe(
            model=model.name,
            recipe=export.recipe.name,
            solution=export.solution,
            allocation=record_of(export.allocation),
            target=export.options.target,
            context_length=str(export.context_length),
        ),
    }
    description = f"{model.name}, {export.recipe.name}, {export.context_length} positions"
    return model_bytes(program, export.plan, description=description, metadata=metadata)


def is_export_file(name: str) -> bool:
    """Whether an export writes a file of this name, which is its path within the folder."""
    package = {f"{PACKAGE}/{inside}" for inside in ("Manifest.json", MODEL_FILE, WEIGHT_FILE)}
    return name in package | REPORT_FILES | {"transcript.json", *COREML_DOCUMENTS}


def _gathered_bytes(config: Qwen3Config) -> int:
    """Of one token's experts in one layer, in fp16."""
    return 2 * 3 * config.num_experts_per_tok * config.moe_intermediate_size * config.hidden_size


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
