"""Weights as a Core ML package stores them, whole or in parts of rows.

No weight is kept in memory: rows are read from weight.bin when they are asked for.

Shapes: # R rows  I columns
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.graph import ALL_ROWS, Role, module_name
from qwen3_export.quantizers.formats import Codes, Values
from qwen3_export.quantizers.params import join_rows
from qwen3_export.quantizers.weights.protocols import read_quantized
from qwen3_export.targets.coreml.blobs import Blob, read_values
from qwen3_export.targets.coreml.recipes import CoremlFormat
from qwen3_export.targets.coreml.storage import CODES, INDICES, VALUES, format_of, storage_of

__all__ = ["CoremlWeight", "SplitWeight", "StoredWeight", "join_parts", "stored_weight"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlWeight:
    """A weight of the graph, or some rows of it; ``parts`` are its arrays by their names."""

    role: Role
    shape: tuple[int, ...]
    number_format: CoremlFormat
    parts: Mapping[str, Blob]
    path: Path

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        """The stored codes and parameters of a block of rows, of whole tables where rows share them."""
        start, stop, _ = rows.indices(self.shape[0])
        if len(self.shape) == 1:
            arrays = {part: _rows(self.path, blob, start, stop)[None] for part, blob in self.parts.items()}
        else:
            arrays = {}
            for part, blob in self.parts.items():
                together = self.shape[0] // blob.shape[0]
                arrays[part] = _rows(self.path, blob, start // together, -(-stop // together))
        return storage_of(self.number_format).unpack(arrays)

    def read(self, rows: slice = ALL_ROWS) -> Values:
        return read_quantized(self, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitWeight:
    """A weight of the graph whose rows are stored in several parts, one below the other."""

    parts: tuple[CoremlWeight, ...]
    shape: tuple[int, ...]

    @property
    def role(self) -> Role:
        return self.parts[0].role

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def number_format(self) -> CoremlFormat:
        return self.parts[0].number_format

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        """The stored codes and parameters of a block of rows."""
        codes, params = zip(*(part.encode(block) for part, block in self._blocks(rows)), strict=True)
        return np.concatenate(codes), None if self.number_format.is_float else join_rows(params)

    def read(self, rows: slice = ALL_ROWS) -> Values:
        return np.concatenate([part.read(block) for part, block in self._blocks(rows)])

    def _blocks(self, rows: slice) -> list[tuple[CoremlWeight, slice]]:
        """The parts that hold these rows, and which of their own rows those are; one at least."""
        start, stop, _ = rows.indices(self.shape[0])
        found, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                found.append((part, slice(low, high)))
            first += part.shape[0]
        return found or [(self.parts[0], slice(0, 0))]


StoredWeight = CoremlWeight | SplitWeight


def stored_weight(role: Role, parts: Mapping[str, Blob], path: Path) -> CoremlWeight:
    """The weight whose parts lie in these places of weight.bin. Raises KeyError where a part is missing."""
    codes = parts[next((part for part in (VALUES, CODES) if part in parts), INDICES)]
    return CoremlWeight(role=role, shape=codes.shape, number_format=format_of(parts), parts=parts, path=path)


def join_parts(parts: Sequence[CoremlWeight]) -> SplitWeight:
    """The weight whose rows are stored in these parts, one below the other."""
    return SplitWeight(parts=tuple(parts), shape=(sum(part.shape[0] for part in parts), parts[0].shape[-1]))


def _rows(path: Path, blob: Blob, start: int, stop: int) -> np.ndarray:
    """Read slices of the first axis."""
    size, count = prod(blob.shape[1:]), max(stop - start, 0)
    return read_values(path, blob, first=start * size, count=count * size).reshape(count, *blob.shape[1:])
