"""One ExecuTorch export from options to plan, and the plan to a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_export.calibration.provenance import describe
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import MissingExtraError, QuantizationError, UnsupportedModelError
from qwen3_export.files.atomic import partial_folder
from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.executorch.recipes import ExecutorchFormat, Recipe, assign, untied

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Solution

__all__ = [
    "PROGRAM",
    "ExecutorchExport",
    "constant_methods",
    "default_path",
    "is_export_file",
    "prepare",
    "with_solution",
]

PROGRAM = "model.pte"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorchExport:
    """An export that is ready to be lowered; ``model`` has a head of its own, ``graph`` the stored values."""

    model: Model
    recipe: Recipe
    graph: Graph
    out: Path
    formats: Mapping[str, ExecutorchFormat]
    group_size: int
    max_seq_len: int
    max_context_len: int
    is_portable: bool = False
    solution: Solution | None = None

    @property
    def weight_formats(self) -> Mapping[str, ExecutorchFormat]:
        return self.formats

    @property
    def num_bytes(self) -> int:
        """Weights and RoPE's tables, about: what the program holds beside them is small."""
        tables = 4 * self.max_context_len * self.graph.config.head_dim
        return tables + sum(_num_bytes(weight, self.formats[weight.name]) for weight in self.graph)

    @property
    def bits_per_weight(self) -> float:
        """Bits of stored weights over the checkpoint's number of them."""
        stored = sum(_num_bytes(weight, self.formats[weight.name]) for weight in self.graph)
        return 8 * stored / self.graph.num_parameters

    @property
    def memory_bytes(self) -> int:
        """What lowering holds, about: torch and its graphs, unpacked codes, and the program being put together."""
        codes = sum(_unpacked_bytes(weight, self.formats[weight.name]) for weight in self.graph)
        return BASE_BYTES + codes + COPIES * self.num_bytes


# Python, torch, ExecuTorch and their graphs.
BASE_BYTES = 1_200_000_000
# Of the packed weights, while ExecuTorch puts a program together: 3.3 GB in all were measured at 0.6B's shapes.
COPIES = 3


def default_path(model: Model, recipe: Recipe) -> Path:
    """``Qwen3-0.6B-executorch-8da4w`` in the current folder."""
    return Path(f"{model.name}-executorch-{recipe.name}")


def prepare(
    model: Model,
    recipe: Recipe,
    *,
    out: Path,
    group_size: int = 32,
    embedding_bits: int | None = None,
    max_seq_len: int = 2048,
    max_context_len: int | None = None,
    is_portable: bool = False,
) -> ExecutorchExport:
    """Choose every weight's format, and round to nearest; ``is_portable``: with operators of every runtime alone.

    Raises QuantizationError for what XNNPACK cannot multiply, UnsupportedModelError for mixtures of experts that its
    operator cannot hold, MissingExtraError without ExecuTorch.
    """
    _require_executorch()
    longest = model.graph.config.max_position_embeddings
    context = max_context_len or min(max_seq_len, longest)
    if not 2 <= max_seq_len <= context:
        raise QuantizationError(f"--max-seq-len {max_seq_len}: must be from 2 to --max-context-len {context}")
    if context > longest:
        raise QuantizationError(f"--max-context-len {context}: the model has positions up to {longest}")
    model = replace(model, graph=untied(model.graph))
    formats = assign(model.graph, recipe, group_size=group_size, embedding_bits=embedding_bits)
    if is_portable:
        _check_portable(model.graph, embedding_bits)
    return ExecutorchExport(
        model=model,
        recipe=recipe,
        graph=round_graph(model.graph, formats),
        out=out,
        formats=formats,
        group_size=group_size,
        max_seq_len=max_seq_len,
        max_context_len=context,
        is_portable=is_portable,
    )


def with_solution(export: ExecutorchExport, solution: Solution) -> ExecutorchExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    return replace(export, graph=solution.graph, solution=solution)


def write(export: ExecutorchExport) -> None:
    """Lower the module and write the folder; it appears under its name when it is whole.

    Raises CheckpointError for weights that cannot be read or are not finite, OutputError for a full disk.
    """
    from qwen3_export.targets.executorch.lower import lower
    from qwen3_export.targets.executorch.module import ExportModule
    from qwen3_export.targets.executorch.run import quiet_libraries
    from qwen3_export.targets.executorch.stored import INDEX, find_constants, find_weights

    quiet_libraries()
    with partial_folder(export.out) as folder:
        module = ExportModule(
            export.graph, export.formats, max_context_len=export.max_context_len, is_portable=export.is_portable
        )
        program = folder / PROGRAM
        lower(module.eval(), program, max_seq_len=export.max_seq_len, constants=constant_methods(export))
        del module
        document = {
            **describe(model=export.model.name, recipe=export.recipe.name, solution=export.solution),
            "group_size": export.group_size,
            "constants": find_constants(program, export.graph, context=export.max_context_len),
            "weights": find_weights(program, export.graph, export.formats),
        }
        (folder / INDEX).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name in TOKENIZER_FILES:
            if (export.model.folder / name).exists():
                shutil.copyfile(export.model.folder / name, folder / name)
        if export.model.tokenizer.chat_template is not None:
            (folder / "chat_template.jinja").write_text(export.model.tokenizer.chat_template, encoding="utf-8")


def constant_methods(export: ExecutorchExport) -> dict[str, Any]:
    """What the runners of phones ask a program: see ExecuTorch's extension/llm/runner/constants.h."""
    config, generation = export.graph.config, export.model.tokenizer.generation
    eos = list(generation.eos_token_ids)
    return {
        "get_max_seq_len": export.max_seq_len,
        "get_max_context_len": export.max_context_len,
        "get_n_layers": config.num_hidden_layers,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": eos[-1] if generation.bos_token_id is None else generation.bos_token_id,
        "get_eos_ids": eos,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": not export.is_portable,
        "enable_dynamic_shape": True,
    }


def is_export_file(name: str) -> bool:
    """Whether a name in a folder is one that an export writes."""
    return name in {PROGRAM, "qwen3_export.json", "chat_template.jinja", "report.json", *TOKENIZER_FILES}


def _check_portable(graph: Graph, embedding_bits: int | None) -> None:
    if embedding_bits == 4:
        raise QuantizationError("--embedding 4: looked up by an operator that not every runtime has; use 8 or 32")
    if graph.config.is_moe:
        raise UnsupportedModelError(
            f"{graph.name}: a mixture of experts is an operator that not every runtime has; leave --portable out"
        )


def _num_bytes(weight: Weight, number_format: ExecutorchFormat) -> int:
    return int(_count(weight) * number_format.bits_per_weight(weight.shape) / 8)


def _unpacked_bytes(weight: Weight, number_format: ExecutorchFormat) -> int:
    return _count(weight) * (4 if number_format.is_float else 1)


def _count(weight: Weight) -> int:
    return weight.shape[0] * (weight.shape[1] if len(weight.shape) > 1 else 1)


def _require_executorch() -> None:
    try:
        import executorch  # noqa: F401 (its absence is the finding)
    except ImportError as error:
        raise MissingExtraError(package="executorch", extra="executorch", purpose="writing a .pte") from error
