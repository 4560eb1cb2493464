"""Plan a GGUF export: the format of each tensor, and the layout of the file.

What can be refused is refused here, before a byte is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.solving import Method, Solution
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import OptionError, QuantizationError
from qwen3_export.graph import Graph
from qwen3_export.parity.tokenization import LLAMA_CPP, token_remarks
from qwen3_export.quantizers.formats import PackedFormat
from qwen3_export.quantizers.transforms import Fold, fold
from qwen3_export.quantizers.weights.digests import digest_name
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.allocating import Allocation, Slot, chosen_formats, read_allocation, record_of
from qwen3_export.targets.gguf.emit import FilePlan, plan_files
from qwen3_export.targets.gguf.ends import end_remarks
from qwen3_export.targets.gguf.imatrix import Imatrix, check_fits, read_imatrix, rounded_plainly
from qwen3_export.targets.gguf.metadata import CalibrationOrigin, Provenance, build_metadata
from qwen3_export.targets.gguf.names import GgufTensor, check_representable, gguf_tensors
from qwen3_export.targets.gguf.recipes import Overrides, Recipe, assign, parse_overrides
from qwen3_export.targets.gguf.sizes import bits_per_weight
from qwen3_export.targets.gguf.slots import slots_of
from qwen3_export.targets.gguf.target import GGUF, GgufOptions
from qwen3_export.targets.target import Written
from qwen3_export.units import human_size, parse_size

# What a solver's record takes at most, beside an error and a digest of each tensor.
RECORD_BYTES, BYTES_A_TENSOR = 2048, 28

Scales = Mapping[Fold, NDArray[np.float32]]

__all__ = ["GgufExport", "default_path", "overrides_of", "prepare", "refuse_imatrix", "with_solution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufExport:
    """An export that is ready to be written; ``formats`` by weight name, ``graph`` with the stored values.

    ``scales`` were moved in ``model`` before anything was rounded; ``checkpoint`` is the model as it was opened.
    """

    checkpoint: Model
    model: Model
    recipe: Recipe
    options: GgufOptions
    graph: Graph
    out: Path
    tensors: tuple[GgufTensor, ...]
    formats: Mapping[str, PackedFormat]
    files: tuple[FilePlan, ...]
    is_calibrated: bool = False
    imatrix: Imatrix | None = None
    scales: Scales = field(default_factory=lambda: MappingProxyType({}))
    allocation: Allocation | None = None

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    @property
    def num_weights(self) -> int:
        """Weights as they are stored: what writing counts."""
        return self.graph.num_parameters

    @property
    def remarks(self) -> tuple[str, ...]:
        split = () if len(self.files) == 1 else (f"it is written in {len(self.files)} files",)
        tokenizer = self.model.tokenizer
        plain = () if self.imatrix is None else rounded_plainly(self.imatrix, self.tensors)
        return (*split, *plain, *tokenizer.notes, *end_remarks(tokenizer), *token_remarks(tokenizer, LLAMA_CPP))

    @property
    def inputs(self) -> list[Path]:
        """Files that are read, and must not be overwritten."""
        imatrix = self.options.imatrix
        return [*self.checkpoint.files(), *([] if imatrix is None else [imatrix])]

    @property
    def report(self) -> Path:
        return self.files[0].path.with_suffix(".report.json")

    @property
    def modelfile(self) -> Path | None:
        """Where the Modelfile goes, if one is wanted."""
        return self.files[0].path.with_name("Modelfile") if self.options.modelfile else None

    def for_method(self, method: Method) -> GgufExport:
        """The plan for values chosen by this method: mixes that ask for an importance matrix count a solver as one."""
        refuse_imatrix(self.options, method)
        is_calibrated = method != "rtn"
        return self if is_calibrated == self.is_calibrated else self._again(is_calibrated=is_calibrated)

    def with_scales(self, scales: Scales) -> GgufExport:
        """The plan with scales that are moved before anything is rounded."""
        return self._again(scales=scales)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What a format can be chosen for."""
        return slots_of(self.tensors, self.formats, overrides=overrides_of(self.options))

    @property
    def beside_bytes(self) -> int:
        """Records of a solver and of tuning."""
        return RECORD_BYTES + BYTES_A_TENSOR * len(self.tensors) if self.is_calibrated else 0

    def with_allocation(self, allocation: Allocation) -> GgufExport:
        """The plan in formats that were chosen for each tensor."""
        return self._again(allocation=allocation)

    def with_recipe(self, recipe: Recipe) -> GgufExport:
        """The plan with another recipe."""
        return self._again(recipe=recipe)

    def _again(
        self,
        *,
        recipe: Recipe | None = None,
        is_calibrated: bool | None = None,
        scales: Scales | None = None,
        allocation: Allocation | None = None,
    ) -> GgufExport:
        return prepare(
            self.checkpoint,
            recipe or self.recipe,
            out=self.out,
            options=self.options,
            is_calibrated=self.is_calibrated if is_calibrated is None else is_calibrated,
            scales=self.scales if scales is None else scales,
            allocation=allocation or self.allocation,
        )

    def rows(self) -> Iterator[str]:
        """Format, shape and name of each tensor, then the files."""
        for tensor in self.tensors:
            yield f"{self.formats[tensor.members[0].name].name:8} {list(tensor.shape)!s:22} {tensor.name}"
        yield ""
        for file in self.files:
            yield f"{human_size(file.num_bytes):>10}  {file.path}"

    def written(self) -> Written:
        return Written(
            parts=tuple(f"{file.path} ({human_size(file.num_bytes)})" for file in self.files),
            bits_per_weight=self.bits_per_weight,
            run_it=f'llama-cli -m {shlex.quote(str(self.files[0].path))} -p "Hello"',
        )

    @property
    def weight_formats(self) -> Mapping[str, PackedFormat]:
        return self.formats

    @property
    def bits_per_weight(self) -> float:
        return bits_per_weight(self.tensors, self.formats)


def default_path(model: Model, recipe: Recipe) -> Path:
    """``Qwen3-1.7B-q4_k_m.gguf`` in the current folder."""
    return Path(f"{model.name}-{recipe.name}.gguf")


def prepare(
    model: Model,
    recipe: Recipe,
    *,
    out: Path | None = None,
    options: GgufOptions | None = None,
    is_calibrated: bool = False,
    scales: Scales | None = None,
    allocation: Allocation | None = None,
) -> GgufExport:
    """Choose every tensor's format, round to nearest, and lay out the file.

    ``is_calibrated`` says that a solver will choose the values afterwards (``with_solution``): mixes that depend on an
    importance matrix count that as one.  ``scales`` are moved first; ``model`` is then that model.  ``allocation`` has
    formats for its tensors, instead of the recipe's.  Raises UnsupportedModelError for what llama.cpp cannot represent,
    QuantizationError for formats that do not fit the rows and for an importance matrix of another model.
    """
    options, out, checkpoint = options or GgufOptions(), out or default_path(model, recipe), model
    overrides = overrides_of(options)
    imatrix = None if options.imatrix is None else read_imatrix(options.imatrix)
    config, scales = model.graph.config, scales or {}
    check_representable(config)
    model = replace(model, graph=fold(model.graph, scales)) if scales else model
    tensors = tuple(gguf_tensors(model.graph))
    if imatrix is not None:
        check_fits(imatrix, tensors)
    has_imatrix = imatrix is not None or is_calibrated
    formats = assign(recipe, config, tensors, has_imatrix=has_imatrix, overrides=overrides)
    slots = slots_of(tensors, formats, overrides=overrides)
    if allocation is None and options.allocation is not None:
        allocation = read_allocation(options.allocation, target=GGUF.name, slots=slots)
    if allocation is not None:
        formats = {**formats, **chosen_formats(slots, allocation)}
    importance = {} if imatrix is None else _importance_by_weight(imatrix, tensors)
    graph = round_graph(model.graph, formats, importance=importance)
    provenance = replace(_provenance(recipe, imatrix), scales=scales, allocation=record_of(allocation))
    files = plan_files(graph, build_metadata(model, provenance), out, split_max_size=_split_size(options))
    return GgufExport(
        checkpoint=checkpoint,
        model=model,
        recipe=recipe,
        options=options,
        graph=graph,
        out=out,
        tensors=tensors,
        formats=formats,
        files=tuple(files),
        is_calibrated=is_calibrated,
        imatrix=imatrix,
        scales=scales,
        allocation=allocation,
    )


def overrides_of(options: GgufOptions) -> Overrides:
    """The formats that the user asked for."""
    return parse_overrides(options.tensor_type, output_type=options.output_type, embedding_type=options.embedding_type)


def refuse_imatrix(options: GgufOptions, method: Method) -> None:
    """An importance matrix is for plain rounding."""
    if options.imatrix is not None and method != "rtn":
        raise OptionError(f"`imatrix` is for `method` rtn; {method} measures more from its `text`")


def with_solution(export: GgufExport, solution: Solution) -> GgufExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    origin = CalibrationOrigin(
        dataset=solution.dataset,
        sha256=solution.sha256,
        num_tokens=solution.num_tokens,
        tensor_errors=tuple(_tensor_error(tensor, solution.errors) for tensor in export.tensors),
        value_digests=tuple(solution.digests.get(digest_name(tensor.members[0].role), "") for tensor in export.tensors),
    )
    recipe = export.recipe
    provenance = Provenance(
        recipe=recipe.name,
        file_type=recipe.file_type,
        method=solution.method,
        calibration=origin,
        scales={**export.scales, **solution.scales},
        allocation=record_of(export.allocation),
        tuning=solution.tuning,
    )
    metadata = build_metadata(export.model, provenance)
    files = plan_files(solution.graph, metadata, export.out, split_max_size=_split_size(export.options))
    return replace(export, graph=solution.graph, files=tuple(files))


def _split_size(options: GgufOptions) -> int | None:
    return None if options.split_max_size is None else parse_size(options.split_max_size, parameter="split_max_size")


def _tensor_error(tensor: GgufTensor, errors: Mapping[str, float]) -> float:
    """The mean over the members (experts) of a tensor; -1 where none was measured."""
    found = [errors[member.name] for member in tensor.members if member.name in errors]
    return sum(found) / len(found) if found else -1.0


def _importance_by_weight(imatrix: Imatrix, tensors: tuple[GgufTensor, ...]) -> dict[str, np.ndarray]:
    result = {}
    for tensor in tensors:
        for member in tensor.members:
            vector = imatrix.importance(tensor.name, member.role.expert)
            if vector is not None:
                result[member.name] = vector
    if not result:
        raise QuantizationError(f"{imatrix.path}: names no tensor of this model; it is another model's")
    return result


def _provenance(recipe: Recipe, imatrix: Imatrix | None) -> Provenance:
    if imatrix is None:
        return Provenance(recipe=recipe.name, file_type=recipe.file_type)
    return Provenance(
        recipe=recipe.name,
        file_type=recipe.file_type,
        imatrix_file=imatrix.path.name,
        imatrix_datasets=tuple(imatrix.datasets),
        imatrix_entries=len(imatrix.entries),
        imatrix_chunks=imatrix.chunks,
    )
