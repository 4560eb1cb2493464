"""Plan an ExecuTorch export, and write the folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_export.calibration.provenance import describe
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import MissingExtraError, OptionError, QuantizationError, UnsupportedModelError
from qwen3_export.files.atomic import partial_folder
from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.tokenization import EXECUTORCH as EXECUTORCH_LIMITS
from qwen3_export.parity.tokenization import token_remarks
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.allocating import Allocation, Slot, chosen_formats, read_allocation, record_of
from qwen3_export.targets.documents import TOKENIZER_DOCUMENTS, tokenizer_documents
from qwen3_export.targets.executorch.recipes import ExecutorchFormat, Recipe, assign, untied
from qwen3_export.targets.executorch.slots import slots_of
from qwen3_export.targets.executorch.target import EXECUTORCH, ExecutorchOptions
from qwen3_export.targets.target import REPORT_FILES, Written
from qwen3_export.units import human_size

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Method, Solution

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
# Tokens of one call, and positions of the cache, where nothing else is asked for.
DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorchExport:
    """An export that is ready to be lowered; ``model`` has a head of its own, ``graph`` the stored values.

    ``max_seq_len`` tokens go into one call, ``context_length`` positions into the cache. ``num_parameters`` are the
    checkpoint's, without the head of a tied model.
    """

    model: Model
    recipe: Recipe
    graph: Graph
    out: Path
    formats: Mapping[str, ExecutorchFormat]
    options: ExecutorchOptions
    context_length: int
    max_seq_len: int
    num_parameters: int
    solution: Solution | None = None
    allocation: Allocation | None = None

    @property
    def weight_formats(self) -> Mapping[str, ExecutorchFormat]:
        return self.formats

    @property
    def num_bytes(self) -> int:
        """Weights and RoPE's tables, about: what the program holds beside them is small."""
        tables = 4 * self.context_length * self.graph.config.head_dim
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

    @property
    def report(self) -> Path:
        return self.out / "report.json"

    @property
    def remarks(self) -> tuple[str, ...]:
        tokenizer = self.model.tokenizer
        notes = (*tokenizer.notes, *token_remarks(tokenizer, EXECUTORCH_LIMITS))
        found = (*notes, f"lowering takes about {human_size(self.memory_bytes)} of memory, and some seconds a layer")
        if self.num_parameters == self.graph.num_parameters:
            return found
        tied = "the tied embedding is stored twice: to look tokens up, and as the head that XNNPACK multiplies with"
        return (*found, tied)

    def for_method(self, method: Method) -> ExecutorchExport:  # noqa: ARG002 (formats are the same for all)
        return self

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What a format can be chosen for."""
        return slots_of(self.model.graph, self.formats, self.options)

    @property
    def beside_bytes(self) -> int:
        """The program beside its weights, with some room: 20 kB in a dense layer, and 7 kB an expert's matrix."""
        matrices = [weight.role for weight in self.graph if len(weight.shape) > 1]
        experts = sum(role.expert is not None for role in matrices)
        return PROGRAM_BYTES + BYTES_A_MATRIX * (len(matrices) - experts) + BYTES_AN_EXPERT_S * experts

    def with_allocation(self, allocation: Allocation) -> ExecutorchExport:
        """The plan in formats that were chosen for each weight."""
        return self._again(self.recipe, allocation)

    def with_recipe(self, recipe: Recipe) -> ExecutorchExport:
        """The plan with another recipe."""
        return self._again(recipe, None)

    def _again(self, recipe: Recipe, allocation: Allocation | None) -> ExecutorchExport:
        """Planned again, from a model that has a head of its own by now: its parameters stay the checkpoint's."""
        found = prepare(self.model, recipe, out=self.out, options=self.options, allocation=allocation)
        return replace(found, num_parameters=self.num_parameters)

    def rows(self) -> Iterator[str]:
        """Format, shape and name of each weight, then the program."""
        for name, number_format in self.formats.items():
            shape = list(self.graph.weights[name].shape)
            yield f"{number_format.name:16} {shape!s:18} {name}"
        yield ""
        yield f"{human_size(self.num_bytes):>10}  {self.out / PROGRAM}"

    def written(self) -> Written:
        size = (self.out / PROGRAM).stat().st_size
        return Written(
            parts=(f"{self.out} ({PROGRAM}: {human_size(size)})",),
            bits_per_weight=8 * size / self.num_parameters,
            run_it="with the LLM runner of ExecuTorch for iOS, Android or C++, model.pte and tokenizer.json",
        )


# Of a program without weights, with some room.
PROGRAM_BYTES, BYTES_A_MATRIX, BYTES_AN_EXPERT_S = 16_384, 3_500, 8_192
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
    out: Path | None = None,
    options: ExecutorchOptions | None = None,
    allocation: Allocation | None = None,
) -> ExecutorchExport:
    """Choose every weight's format, and round to nearest; ``allocation`` has formats, instead of the recipe's.

    Raises QuantizationError for what XNNPACK cannot multiply, UnsupportedModelError for mixtures of experts that its
    operator cannot hold, MissingExtraError without ExecuTorch.
    """
    _require_executorch()
    options, num_parameters = options or ExecutorchOptions(), model.graph.num_parameters
    longest = model.graph.config.context_length
    most = options.max_seq_len or min(DEFAULT_LENGTH, options.context_length or longest, longest)
    context = options.context_length or min(most, longest)
    if not 2 <= most <= context:
        raise OptionError(f"`max_seq_len` {most}: must be from 2 to the `context_length` {context}")
    if context > longest:
        raise OptionError(f"`context_length` {context}: the model has positions up to {longest}")
    model = replace(model, graph=untied(model.graph))
    formats = assign(model.graph, recipe, group_size=options.group_size, embedding_bits=options.embedding)
    slots = slots_of(model.graph, formats, options)
    if allocation is None and options.allocation is not None:
        allocation = read_allocation(options.allocation, target=EXECUTORCH.name, slots=slots)
    if allocation is not None:
        formats = {**formats, **chosen_formats(slots, allocation)}
    if options.portable:
        _check_portable(model.graph, options.embedding)
    return ExecutorchExport(
        model=model,
        recipe=recipe,
        graph=round_graph(model.graph, formats),
        out=out or default_path(model, recipe),
        formats=formats,
        options=options,
        context_length=context,
        max_seq_len=most,
        num_parameters=num_parameters,
        allocation=allocation,
    )


def with_solution(export: ExecutorchExport, solution: Solution) -> ExecutorchExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    return replace(export, graph=solution.graph, solution=solution)


def write(export: ExecutorchExport, *, overwrite: bool = False) -> None:
    """Lower the module and write the folder; it appears under its name when it is whole.

    With ``overwrite`` it replaces an earlier export, and no folder that holds anything else.
    Raises CheckpointError for weights that cannot be read or are not finite, OutputError for a full disk and
    for a place that is taken.
    """
    from qwen3_export.targets.executorch.lower import lower
    from qwen3_export.targets.executorch.module import ExportModule
    from qwen3_export.targets.executorch.run import quiet_libraries
    from qwen3_export.targets.executorch.stored import INDEX, find_constants, find_weights

    quiet_libraries()
    inputs = export.model.files()
    with partial_folder(export.out, overwrite=overwrite, is_ours=is_export_file, inputs=inputs) as folder:
        module = ExportModule(
            export.graph, export.formats, max_context_len=export.context_length, is_portable=export.options.portable
        )
        program = folder / PROGRAM
        lower(module.eval(), program, max_seq_len=export.max_seq_len, constants=constant_methods(export))
        del module
        document = {
            **describe(
                model=export.model.name,
                recipe=export.recipe.name,
                solution=export.solution,
                allocation=record_of(export.allocation),
            ),
            "group_size": export.options.group_size,
            "constants": find_constants(program, export.graph, context=export.context_length),
            "weights": find_weights(program, export.graph, export.formats),
        }
        (folder / INDEX).write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, content in tokenizer_documents(export.model, composes=False).items():
            (folder / name).write_bytes(content)


def constant_methods(export: ExecutorchExport) -> dict[str, Any]:
    """What the runners of phones ask a program: see ExecuTorch's extension/llm/runner/constants.h."""
    config, generation = export.graph.config, export.model.tokenizer.generation
    eos = list(generation.eos_token_ids)
    return {
        "get_max_seq_len": export.max_seq_len,
        "get_max_context_len": export.context_length,
        "get_n_layers": config.num_hidden_layers,
        "get_vocab_size": config.vocab_size,
        "get_bos_id": export.model.tokenizer.bos_token_id,
        "get_eos_ids": eos,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": not export.options.portable,
        "enable_dynamic_shape": True,
    }


def is_export_file(name: str) -> bool:
    """Whether an export writes a file of this name, which is its path within the folder."""
    return name in REPORT_FILES | {PROGRAM, "qwen3_export.json", *TOKENIZER_DOCUMENTS}


def _check_portable(graph: Graph, embedding_bits: int | None) -> None:
    if embedding_bits == 4:
        raise QuantizationError("`embedding` 4: looked up by an operator that not every runtime has; use 8 or 32")
    if graph.config.is_moe:
        raise UnsupportedModelError(
            f"{graph.name}: a mixture of experts is an operator that not every runtime has; leave `portable=True` out"
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
