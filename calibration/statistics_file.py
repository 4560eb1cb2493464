"""Write statistics to a safetensors file, and read them, under keys that name kind and layer.

    input.q_proj.3.sum_of_squares      [E, I]   input.lm_head.sum_of_squares
    state.k_rope.3.max_magnitude       [K, H]   state.final.max_magnitude

The metadata names the model and the tokens. The work folder holds the statistics of single layers in the same form.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from qwen3_export.calibration.columns import ColumnStatistics
from qwen3_export.calibration.layer_statistics import LayerStatistics
from qwen3_export.calibration.statistics import Origin, Statistics
from qwen3_export.errors import CheckpointError
from qwen3_export.files.atomic import partial_file
from qwen3_export.files.recognise import STATISTICS_FORMAT, is_statistics, is_work_file
from qwen3_export.graph import Kind, Role
from qwen3_export.reference.probe import Place, Site

__all__ = ["read_layer_statistics", "read_statistics", "write_layer_statistics", "write_statistics"]

# Field of ColumnStatistics by its name in the file, with the type that is stored.
FIELDS: Mapping[str, tuple[str, str]] = {
    "sum_of_squares": ("sum_of_squares_EI", "F32"),
    "sum_of_magnitudes": ("sum_of_magnitudes_EI", "F32"),
    "max_magnitude": ("max_magnitude_EI", "F32"),
    "count": ("count_E", "I64"),
    "squared_shares": ("squared_shares_E", "F32"),
}
DTYPES: Mapping[str, str] = {"F32": "<f4", "I64": "<i8"}


def write_statistics(path: Path, statistics: Statistics, *, overwrite: bool = False) -> None:
    """Write a file that appears when it is whole; its bytes depend on the statistics alone.

    With ``overwrite`` it replaces earlier statistics, and no other file. Raises OutputError.
    """
    part = LayerStatistics(inputs=statistics.inputs, states=statistics.states)
    metadata = {"format": STATISTICS_FORMAT, "origin": json.dumps(asdict(statistics.origin))}
    _write(path, part, metadata, overwrite=overwrite, is_ours=is_statistics)


def read_statistics(path: Path) -> Statistics:
    """Statistics from a file: the inverse of ``write_statistics``. Raises CheckpointError if there are none in it."""
    part, metadata = _read(path)
    try:
        origin = Origin(**json.loads(metadata["origin"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: does not say where it comes from; make it anew with calibrate") from error
    return Statistics(origin=origin, inputs=part.inputs, states=part.states)


def write_layer_statistics(path: Path, part: LayerStatistics) -> None:
    _write(path, part, {"format": STATISTICS_FORMAT}, overwrite=True, is_ours=is_work_file)


def read_layer_statistics(path: Path) -> LayerStatistics:
    """The statistics of one layer: the inverse of ``write_layer_statistics``."""
    return _read(path)[0]


def _write(
    path: Path,
    part: LayerStatistics,
    metadata: Mapping[str, str],
    *,
    overwrite: bool,
    is_ours: Callable[[Path], bool],
) -> None:
    names = [name for name, _ in _entries(part)]
    header: dict[str, Any] = {"__metadata__": {**metadata, "entries": json.dumps(names)}}
    offset = 0
    for name, stored, array in _arrays(part):
        header[name] = {"dtype": stored, "shape": list(array.shape), "data_offsets": [offset, offset + array.nbytes]}
        offset += array.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    size = 8 + len(encoded) + offset
    opened = partial_file(path, num_bytes=size, overwrite=overwrite, is_ours=is_ours)
    with opened as descriptor, os.fdopen(descriptor, "wb", closefd=False) as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for _, _, array in _arrays(part):
            file.write(array.tobytes())


def _arrays(part: LayerStatistics) -> Iterator[tuple[str, str, NDArray[Any]]]:
    """Name, stored type and values of every array in a fixed order, with counts first, so that all are aligned."""
    for field, (attribute, stored) in sorted(FIELDS.items(), key=lambda item: item[1][1] != "I64"):
        for name, found in _entries(part):
            yield f"{name}.{field}", stored, np.ascontiguousarray(getattr(found, attribute), DTYPES[stored])


def _entries(part: LayerStatistics) -> list[tuple[str, ColumnStatistics]]:
    inputs = [(f"input.{_of_role(role)}", found) for role, found in part.inputs.items()]
    return inputs + [(f"state.{_of_site(site)}", found) for site, found in part.states.items()]


def _read(path: Path) -> tuple[LayerStatistics, Mapping[str, str]]:
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != STATISTICS_FORMAT:
                raise CheckpointError(f"{path}: holds no calibration statistics; make them with calibrate")
            names = json.loads(metadata["entries"])
            found = {name: _columns(file, name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); make it anew with calibrate") from error
    return LayerStatistics(
        inputs=MappingProxyType({_to_role(name): found[name] for name in names if name.startswith("input.")}),
        states=MappingProxyType({_to_site(name): found[name] for name in names if name.startswith("state.")}),
    ), metadata


def _columns(file: Any, name: str) -> ColumnStatistics:
    return ColumnStatistics(
        **{attribute: file.get_tensor(f"{name}.{field}") for field, (attribute, _) in FIELDS.items()}
    )


def _of_role(role: Role) -> str:
    return role.kind.value if role.layer is None else f"{role.kind.value}.{role.layer}"


def _of_site(site: Site) -> str:
    return site.place.value if site.layer is None else f"{site.place.value}.{site.layer}"


def _to_role(name: str) -> Role:
    _, kind, *layer = name.split(".")
    return Role(Kind(kind), *map(int, layer))


def _to_site(name: str) -> Site:
    _, place, *layer = name.split(".")
    return Site(Place(place), *map(int, layer))
