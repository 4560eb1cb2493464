"""One Core ML export from options to plan, and the plan to a folder.

Everything that can be refused is refused in ``prepare``, before a byte is written.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from qwen3_export.calibration.provenance import describe
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import QuantizationError, UnsupportedModelError
from qwen3_export.files.atomic import partial_file, partial_folder
from qwen3_export.graph import Graph
from qwen3_export.parallel import default_threads
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.coreml.extra import require_coremltools
from qwen3_export.targets.coreml.layout import WeightPlan, plan_weights, stored_matrices
from qwen3_export.targets.coreml.names import MODEL_FILE, PACKAGE, WEIGHT_FILE
from qwen3_export.targets.coreml.program import ProgramOptions, build_program, constants
from qwen3_export.targets.coreml.recipes import CoremlFormat, Recipe, assign

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Solution

__all__ = ["TARGETS", "CoremlExport", "Target", "default_path", "is_export_file", "prepare", "with_solution", "write"]

Target = Literal["iOS18", "macOS15"]
TARGETS: tuple[Target, ...] = get_args(Target)

DEFAULT_CONTEXT = 2048
# swift-transformers wants a range of lengths, and stops the app where the largest is not above 2.
LEAST_CONTEXT = 3

FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "generation_config.json")
TEMPLATE = "chat_template.jinja"

# Python, torch, coremltools and the program; and what a thread holds of one block of rows.
BASE_BYTES, BYTES_A_THREAD = 800_000_000, 40_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlExport:
    """An export that is ready to be written; ``formats`` by weight name, ``graph`` with the stored values."""

    model: Model
    recipe: Recipe
    graph: Graph
    out: Path
    formats: Mapping[str, CoremlFormat]
    options: ProgramOptions
    plan: WeightPlan
    target: Target = "iOS18"
    solution: Solution | None = None

    @property
    def package(self) -> Path:
        return self.out / PACKAGE

    @property
    def context_length(self) -> int:
        return self.options.context_length

    @property
    def weight_formats(self) -> Mapping[str, CoremlFormat]:
        return self.formats

    @property
    def num_bytes(self) -> int:
        """Of weight.bin; the program beside it is a few megabytes."""
        return self.plan.num_bytes

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


def default_path(model: Model, recipe: Recipe) -> Path:
    """``Qwen3-0.6B-coreml-int4`` in the current folder."""
    return Path(f"{model.name}-coreml-{recipe.name}")


def prepare(
    model: Model,
    recipe: Recipe,
    *,
    out: Path,
    context_length: int | None = None,
    block_size: int = 32,
    channelwise: bool = False,
    split_lm_head: int | None = None,
    fused_attention: bool = False,
    target: Target = "iOS18",
) -> CoremlExport:
    """Choose every weight's format, round to nearest, and lay out weight.bin.

    ``channelwise`` gives int4 one scale a row, for the Neural Engine; ``split_lm_head`` cuts the output head into
    parts of so many rows; ``fused_attention`` uses Core ML's own operator for attention (see ``blocks``).
    Raises QuantizationError for what Core ML does not store and for a context that the model does not have,
    UnsupportedModelError for mixtures of experts, MissingExtraError without coremltools.
    """
    require_coremltools("writing a Core ML package")
    config = model.graph.config
    if config.is_moe:
        raise UnsupportedModelError(
            f"{model.name}: a mixture of experts cannot be exported to Core ML, which has no operator that gathers "
            "experts; use gguf or onnx"
        )
    longest = config.max_position_embeddings
    context = min(DEFAULT_CONTEXT, longest) if context_length is None else context_length
    if not LEAST_CONTEXT <= context <= longest:
        raise QuantizationError(f"--context-length {context}: must be from {LEAST_CONTEXT} to the model's {longest}")
    if target not in TARGETS:
        raise QuantizationError(f"--target {target}: there is {', '.join(TARGETS)}, which states and int4 need")
    options = ProgramOptions(float_type=recipe.float_type, context_length=context, has_fused_attention=fused_attention)
    formats = assign(model.graph, recipe, block_size=block_size, channelwise=channelwise)
    matrices = stored_matrices(model.graph, formats, head_rows=split_lm_head)
    out_features = [matrix.shape[0] for matrix in matrices if len(matrix.shape) > 1]
    return CoremlExport(
        model=model,
        recipe=recipe,
        graph=round_graph(model.graph, formats),
        out=out,
        formats=formats,
        options=options,
        plan=plan_weights(matrices, constants(config, options, out_features=out_features)),
        target=target,
    )


def with_solution(export: CoremlExport, solution: Solution) -> CoremlExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    return replace(export, graph=solution.graph, solution=solution)


def write(export: CoremlExport, *, threads: int | None = None, progress: Callable[[int], None] | None = None) -> None:
    """Write the folder; it appears under its name when it is whole.

    Raises CheckpointError for weights that cannot be read or are not finite, OutputError for a full disk.
    """
    from qwen3_export.targets.coreml.emit import write_weights
    from qwen3_export.targets.coreml.serialize import manifest_text

    with partial_folder(export.out) as folder:
        package = folder / PACKAGE
        weights = package / WEIGHT_FILE
        weights.parent.mkdir(parents=True)
        with partial_file(weights, num_bytes=export.num_bytes) as descriptor:
            write_weights(descriptor, export.graph, export.plan, threads=threads, progress=progress)
        _write_bytes(package / MODEL_FILE, program_bytes(export))
        _write_bytes(package / "Manifest.json", manifest_text().encode())
        for name in FILES:
            if (export.model.folder / name).exists():
                shutil.copyfile(export.model.folder / name, folder / name)
        template = export.model.tokenizer.chat_template
        if template is not None:
            _write_bytes(folder / TEMPLATE, template.encode("utf-8"))


def program_bytes(export: CoremlExport) -> bytes:
    """model.mlmodel, its weights in weight.bin."""
    from qwen3_export.targets.coreml.serialize import model_bytes

    config, model = export.graph.config, export.model
    program = build_program(config, export.plan, export.options)
    metadata = {
        "co.huggingface.exporters.name": model.source,
        "co.huggingface.exporters.task": "text-generation",
        "co.huggingface.exporters.architecture": "Qwen3ForCausalLM",
        **describe(
            model=model.name,
            recipe=export.recipe.name,
            solution=export.solution,
            target=export.target,
            context_length=str(export.context_length),
        ),
    }
    description = f"{model.name}, {export.recipe.name}, {export.context_length} positions"
    return model_bytes(program, export.plan, description=description, metadata=metadata)


def is_export_file(name: str) -> bool:
    """Whether a name at the top of a folder is one that an export writes."""
    return name in {PACKAGE, TEMPLATE, "report.json", "report.html", "transcript.json", *FILES}


def _count(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
