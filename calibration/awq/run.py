"""Run AWQ on a whole model: search scales layer by layer, keep them as they are found, and round the model.

Each layer is searched on its inputs in the fp32 model (``search.py``), so layers do not depend on each other. A run
that was interrupted continues with the first layer that has no file yet:

    awq-1f0c…/layer-0003.npz    "scale input_layernorm -", "scale up_proj 17", …; "importance model.layers.3.…"

Columns are measured on all windows. Candidates, some forty for each layer, are compared on a few windows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.awq.search import ALPHAS, search_layer
from qwen3_export.calibration.digests import run_key
from qwen3_export.errors import QuantizationError
from qwen3_export.files.atomic import partial_file
from qwen3_export.files.recognise import is_work_file
from qwen3_export.files.unfinished import make_run_folder
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.transforms import Fold, Pair, fold
from qwen3_export.quantizers.weights.rounded import RoundedWeight
from qwen3_export.reference.layer import rms_norm
from qwen3_export.reference.model import run_layer
from qwen3_export.reference.weights import embed, read_tensor

__all__ = ["SEARCH_TOKENS", "AwqResult", "awq_graph", "judged_windows", "weighted_error"]

# Raise it when a change makes results differ from those of older runs.
VERSION = 1

SEARCH_TOKENS = 4096
"""About as many tokens are used to compare candidates."""

VALUES_PER_BLOCK = 1 << 21

Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqResult:
    """``graph`` has the scales moved and its weights rounded; ``errors`` (``weighted_error``) are by weight name."""

    graph: Graph
    scales: Mapping[Fold, Values]
    errors: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """The result for one layer."""

    scales: Mapping[Fold, Values]
    importance: Mapping[str, Values]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Search:
    """How candidates are made and compared; part of what names a run."""

    alphas: tuple[float, ...]
    is_judged_raw: bool


@torch.inference_mode()
def awq_graph(
    graph: Graph,
    formats: Mapping[str, NumberFormat],
    windows: Sequence[NDArray[np.int64]],
    *,
    work_dir: Path,
    alphas: Sequence[float] = ALPHAS,
    is_judged_raw: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> AwqResult:
    """Move scales where rounding to ``formats`` (by weight name) then costs less, and round.

    ``alphas`` and ``is_judged_raw`` are as in ``search_layer``; ``progress`` is told how many steps of how many are
    done. Raises QuantizationError for a weight without a format, OutputError where ``work_dir`` cannot be written.
    """
    missing = graph.weights.keys() - formats.keys()
    if missing:
        raise QuantizationError(f"{min(missing)}: has no number format; give one for each weight")
    search = _Search(alphas=tuple(alphas), is_judged_raw=is_judged_raw)
    folder = _open_folder(work_dir, graph, windows=windows, formats=formats, search=search)
    layers = graph.config.num_hidden_layers
    hidden = [embed(graph, torch.from_numpy(np.asarray(window_T, np.int64))) for window_T in windows]
    found: list[_Layer] = []
    for layer in range(layers):
        result, hidden = _find_layer(graph, layer, hidden=hidden, formats=formats, search=search, folder=folder)
        found.append(result)
        if progress is not None:
            progress(layer + 1, layers + 1)
    scales = {place: scale for result in found for place, scale in result.scales.items()}
    importance = {name: vector for result in found for name, vector in result.importance.items()}
    importance[graph.head.name] = _head_importance(graph, hidden)
    rounded = _rounded(fold(graph, scales), formats, importance)
    if progress is not None:
        progress(layers + 1, layers + 1)
    return AwqResult(graph=rounded[0], scales=MappingProxyType(scales), errors=MappingProxyType(rounded[1]))


def weighted_error(stored: Weight, exact: Weight, importance: Values) -> float:
    """Σ importance · (stored - exact)² / Σ importance · exact²: the output error if columns were independent."""
    rows, columns = exact.shape
    step = max(1, VALUES_PER_BLOCK // columns)
    lost = whole = 0.0
    for first in range(0, rows, step):
        block = slice(first, min(first + step, rows))
        exact_RI = exact.read(block)
        lost += float((np.square(stored.read(block) - exact_RI) @ importance).sum(dtype=np.float64))
        whole += float((np.square(exact_RI) @ importance).sum(dtype=np.float64))
    return lost / whole if whole else 0.0


def judged_windows(windows: Sequence[Sized]) -> list[int]:
    """The windows, evenly spaced, on which candidates are compared."""
    step = max(1, sum(map(len, windows)) // SEARCH_TOKENS)
    return list(range(0, len(windows), step))


def _find_layer(
    graph: Graph,
    layer: int,
    *,
    hidden: list[Tensor],
    formats: Mapping[str, NumberFormat],
    search: _Search,
    folder: Path,
) -> tuple[_Layer, list[Tensor]]:
    """The scales of a layer, searched or from an earlier run, and the inputs of the next layer in the fp32 model."""
    path = folder / f"layer-{layer:04d}.npz"
    if path.exists():
        return _load(path, layer), run_layer(graph, layer, hidden=hidden)

    def rounding(weight: Weight, importance: Values | None) -> Weight:
        number_format = formats[weight.name]
        if number_format.is_float:
            return weight
        return RoundedWeight(source=weight, number_format=number_format, importance=importance)

    searched, after = search_layer(
        graph,
        layer,
        hidden=hidden,
        rounding=rounding,
        alphas=search.alphas,
        judged=judged_windows(hidden),
        is_judged_raw=search.is_judged_raw,
    )
    result = _Layer(scales=searched.scales, importance=searched.importance)
    _save(path, result)
    return result, after


def _rounded(
    folded: Graph, formats: Mapping[str, NumberFormat], importance: Mapping[str, Values]
) -> tuple[Graph, dict[str, float]]:
    """The folded graph rounded to its formats, and the error of each matrix that has an importance."""
    weights: dict[str, Weight] = {}
    errors: dict[str, float] = {}
    for weight in folded:
        number_format = formats[weight.name]
        vector = None if number_format.is_float else importance.get(weight.name)
        weights[weight.name] = RoundedWeight(source=weight, number_format=number_format, importance=vector)
        if vector is not None:
            errors[weight.name] = weighted_error(weights[weight.name], weight, vector)
    return folded.with_weights(MappingProxyType(weights)), errors


def _head_importance(graph: Graph, hidden: Sequence[Tensor]) -> Values:
    """The mean square of each input channel of the output head."""
    norm_D = read_tensor(graph[Role(Kind.NORM)])
    sums_D = torch.zeros(len(norm_D))
    for x_TD in hidden:
        sums_D += rms_norm(x_TD, norm_D, eps=graph.config.rms_norm_eps).square().sum(dim=0)
    return np.asarray((sums_D / sum(map(len, hidden))).numpy(), np.float32)


def _open_folder(
    root: Path,
    graph: Graph,
    *,
    windows: Sequence[NDArray[np.int64]],
    formats: Mapping[str, NumberFormat],
    search: _Search,
) -> Path:
    names = {name: number_format.name for name, number_format in formats.items()}
    settings = {"alphas": list(search.alphas), "raw": search.is_judged_raw, "search_tokens": SEARCH_TOKENS}
    key = run_key(f"awq {VERSION}", graph, windows=windows, formats=names, settings=settings)
    folder = root / f"awq-{key}"
    make_run_folder(folder)
    return folder


def _save(path: Path, result: _Layer) -> None:
    arrays = {_scale_key(place): scale for place, scale in result.scales.items()}
    arrays |= {f"importance {name}": vector for name, vector in result.importance.items()}
    opened = partial_file(path, overwrite=True, is_ours=is_work_file)
    with opened as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _load(path: Path, layer: int) -> _Layer:
    scales: dict[Fold, Values] = {}
    importance: dict[str, Values] = {}
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, name, *rest = key.split(" ")
            if kind == "scale":
                scales[Fold(Pair(name), layer, None if rest == ["-"] else int(rest[0]))] = arrays[key]
            else:
                importance[name] = arrays[key]
    return _Layer(scales=scales, importance=importance)


def _scale_key(place: Fold) -> str:
    return f"scale {place.pair.value} {'-' if place.expert is None else place.expert}"
