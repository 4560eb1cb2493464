"""One GGUF export from options to plan: which tensor takes which format, and what the file will be.

Everything that can be refused is refused here, before a byte is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph
from qwen3_export.model import Model
from qwen3_export.quantizers.quantized import quantize
from qwen3_export.targets.gguf.emit import FilePlan, plan_files
from qwen3_export.targets.gguf.imatrix import Imatrix, check_fits
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.names import GgufTensor, check_representable, gguf_tensors
from qwen3_export.targets.gguf.recipes import Overrides, Recipe, assign
from qwen3_export.targets.gguf.sizes import bits_per_weight

__all__ = ["GgufExport", "default_path", "prepare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufExport:
    """An export that is ready to be written; ``formats`` by GGUF tensor name."""

    model: Model
    recipe: Recipe
    graph: Graph
    tensors: tuple[GgufTensor, ...]
    formats: Mapping[str, str]
    files: tuple[FilePlan, ...]

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

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
    split_max_size: int | None = None,
) -> GgufExport:
    """Choose every tensor's format and lay out the file.

    Raises UnsupportedModelError for what llama.cpp cannot represent, QuantizationError for formats that do not
    fit the rows and for an importance matrix of another model.
    """
    config = model.graph.config
    check_representable(config)
    tensors = tuple(gguf_tensors(model.graph))
    if imatrix is not None:
        check_fits(imatrix, tensors)
    formats = assign(recipe, config, tensors, has_imatrix=imatrix is not None, overrides=overrides or Overrides())
    by_weight = {member.name: formats[tensor.name] for tensor in tensors for member in tensor.members}
    importance = {} if imatrix is None else _importance_by_weight(imatrix, tensors)
    graph = quantize(model.graph, by_weight, importance=importance)
    metadata = build_metadata(model, _provenance(recipe, imatrix))
    files = plan_files(graph, metadata, out, split_max_size=split_max_size)
    return GgufExport(model=model, recipe=recipe, graph=graph, tensors=tensors, formats=formats, files=tuple(files))


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
