"""One GGUF export from options to plan: which tensor takes which format, and what the file will be.

Everything that can be refused is refused here, before a byte is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.solving import Solution
from qwen3_export.checkpoint.model import Model
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph
from qwen3_export.quantizers.formats import PackedFormat
from qwen3_export.quantizers.transforms import Fold, fold
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.gguf.emit import FilePlan, plan_files
from qwen3_export.targets.gguf.imatrix import Imatrix, check_fits
from qwen3_export.targets.gguf.metadata import CalibrationOrigin, Provenance, build_metadata
from qwen3_export.targets.gguf.names import GgufTensor, check_representable, gguf_tensors
from qwen3_export.targets.gguf.recipes import Overrides, Recipe, assign
from qwen3_export.targets.gguf.sizes import bits_per_weight

Scales = Mapping[Fold, NDArray[np.float32]]

__all__ = ["GgufExport", "default_path", "prepare", "with_solution"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufExport:
    """An export that is ready to be written; ``formats`` by weight name, ``graph`` with the stored values.

    ``scales`` were moved in ``model`` before anything was rounded.
    """

    model: Model
    recipe: Recipe
    graph: Graph
    out: Path
    split_max_size: int | None
    tensors: tuple[GgufTensor, ...]
    formats: Mapping[str, PackedFormat]
    files: tuple[FilePlan, ...]
    scales: Scales = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

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
    out: Path,
    overrides: Overrides | None = None,
    imatrix: Imatrix | None = None,
    is_calibrated: bool = False,
    scales: Scales | None = None,
    split_max_size: int | None = None,
) -> GgufExport:
    """Choose every tensor's format, round to nearest, and lay out the file.

    ``is_calibrated`` says that a solver will choose the values afterwards (``with_solution``): mixes that depend on
    an importance matrix count that as one.  ``scales`` are moved first; ``model`` is then that model.  Raises
    UnsupportedModelError for what llama.cpp cannot represent, QuantizationError for formats that do not fit the rows
    and for an importance matrix of another model.
    """
    config, scales = model.graph.config, scales or {}
    check_representable(config)
    model = replace(model, graph=fold(model.graph, scales)) if scales else model
    tensors = tuple(gguf_tensors(model.graph))
    if imatrix is not None:
        check_fits(imatrix, tensors)
    has_imatrix = imatrix is not None or is_calibrated
    formats = assign(recipe, config, tensors, has_imatrix=has_imatrix, overrides=overrides or Overrides())
    importance = {} if imatrix is None else _importance_by_weight(imatrix, tensors)
    graph = round_graph(model.graph, formats, importance=importance)
    provenance = replace(_provenance(recipe, imatrix), scales=scales)
    files = plan_files(graph, build_metadata(model, provenance), out, split_max_size=split_max_size)
    return GgufExport(
        model=model,
        recipe=recipe,
        graph=graph,
        out=out,
        split_max_size=split_max_size,
        tensors=tensors,
        formats=formats,
        files=tuple(files),
        scales=scales,
    )


def with_solution(export: GgufExport, solution: Solution) -> GgufExport:
    """The export with the values that a solver has chosen, in the formats that it had."""
    origin = CalibrationOrigin(
        dataset=solution.dataset,
        sha256=solution.sha256,
        num_tokens=solution.num_tokens,
        tensor_errors=tuple(_tensor_error(tensor, solution.errors) for tensor in export.tensors),
    )
    recipe = export.recipe
    provenance = Provenance(
        recipe=recipe.name,
        file_type=recipe.file_type,
        method=solution.method,
        calibration=origin,
        scales={**export.scales, **solution.scales},
    )
    metadata = build_metadata(export.model, provenance)
    files = plan_files(solution.graph, metadata, export.out, split_max_size=export.split_max_size)
    return replace(export, graph=solution.graph, files=tuple(files))


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
