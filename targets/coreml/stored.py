"""Weights as a Core ML package stores them: floats, codes and scales, or indices and tables, whole or in parts.

No weight is kept in memory: rows are read from weight.bin when they are asked for.

Shapes: # R rows  I columns  G groups a row  L tables  E entries a table
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.graph import ALL_ROWS, Role, module_name
from qwen3_export.quantizers.affine import AffineFormat, AffineParams
from qwen3_export.quantizers.palette import PaletteFormat, PaletteParams
from qwen3_export.quantizers.weights.coded import CodedFormat, read_coded
from qwen3_export.targets.coreml.blobs import Blob, read_values
from qwen3_export.targets.coreml.layout import CODES, INDICES, SCALES, TABLES, VALUES

__all__ = ["CoremlWeight", "FloatWeight", "SplitWeight", "StoredWeight", "join_parts", "stored_weight"]

FLOAT_NAMES: Mapping[str, str] = {"fp16": "F16", "fp32": "F32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatWeight:
    """A weight of the graph, or some of its rows, stored as floats."""

    role: Role
    shape: tuple[int, ...]
    blob: Blob
    path: Path

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return FLOAT_NAMES[self.blob.element]

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return _rows(self.path, self.blob, start, stop).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class CoremlWeight:
    """A weight of the graph, or some of its rows, stored as codes or indices; ``parts`` are its arrays by name."""

    role: Role
    shape: tuple[int, ...]
    number_format: CodedFormat
    parts: Mapping[str, Blob]
    path: Path

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, Any]:
        """Stored codes and parameters of a block of rows. If rows share tables, the block must hold whole tables."""
        start, stop, _ = rows.indices(self.shape[0])
        codes_RI = _rows(self.path, self.parts[CODES if CODES in self.parts else INDICES], start, stop)
        if isinstance(self.number_format, AffineFormat):
            scale_RG = _rows(self.path, self.parts[SCALES], start, stop).astype(np.float32)
            return codes_RI, AffineParams(scale_RG=scale_RG, zero_point_RG=np.zeros(scale_RG.shape, np.int8))
        together = self.number_format.rows_together or self.shape[0]
        tables = _rows(self.path, self.parts[TABLES], start // together, -(-stop // together))
        return codes_RI, PaletteParams(table_LE=tables.reshape(len(tables), -1).astype(np.float32))

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return read_coded(self, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitWeight:
    """A weight of the graph whose rows are stored in several parts, one below the other."""

    parts: tuple[FloatWeight | CoremlWeight, ...]
    shape: tuple[int, ...]

    @property
    def role(self) -> Role:
        return self.parts[0].role

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.parts[0].format

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return np.concatenate([part.read(block) for part, block in self._blocks(rows)])

    def _blocks(self, rows: slice) -> list[tuple[FloatWeight | CoremlWeight, slice]]:
        """The parts that hold these rows, each with its own row range; at least one part."""
        start, stop, _ = rows.indices(self.shape[0])
        found, first = [], 0
        for part in self.parts:
            low, high = max(start - first, 0), min(stop - first, part.shape[0])
            if low < high:
                found.append((part, slice(low, high)))
            first += part.shape[0]
        return found or [(self.parts[0], slice(0, 0))]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitCodedWeight(SplitWeight):
    """A split weight whose parts hold codes."""

    @property
    def number_format(self) -> CodedFormat:
        part = self.parts[0]
        assert isinstance(part, CoremlWeight)
        return part.number_format

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, Any]:
        """The stored codes and parameters of a block of rows."""
        codes, params = zip(*(_encoded(part, block) for part, block in self._blocks(rows)), strict=True)
        return np.concatenate(codes), _joined(params)


StoredWeight = FloatWeight | CoremlWeight | SplitWeight


def stored_weight(role: Role, parts: Mapping[str, Blob], path: Path) -> FloatWeight | CoremlWeight:
    """Build the weight from its parts in weight.bin."""
    if VALUES in parts:
        return FloatWeight(role=role, shape=parts[VALUES].shape, blob=parts[VALUES], path=path)
    codes = parts[CODES] if CODES in parts else parts[INDICES]
    return CoremlWeight(role=role, shape=codes.shape, number_format=_number_format(parts), parts=parts, path=path)


def join_parts(parts: Sequence[FloatWeight | CoremlWeight]) -> SplitWeight:
    """Join parts of rows, one below the other, into one weight."""
    shape = (sum(part.shape[0] for part in parts), parts[0].shape[-1])
    kind = SplitCodedWeight if isinstance(parts[0], CoremlWeight) else SplitWeight
    return kind(parts=tuple(parts), shape=shape)


def _number_format(parts: Mapping[str, Blob]) -> CodedFormat:
    if CODES in parts:
        codes, scales = parts[CODES], parts[SCALES]
        groups = scales.shape[1]
        return AffineFormat(
            num_bits=codes.num_bits,
            group_size=None if groups == 1 else codes.shape[1] // groups,
            scale_dtype="f32" if scales.element == "fp32" else "f16",
        )
    indices, tables = parts[INDICES], parts[TABLES]
    return PaletteFormat(
        num_bits=indices.num_bits,
        rows_per_table=indices.shape[0] // tables.shape[0],
        table_dtype="f32" if tables.element == "fp32" else "f16",
    )


def _rows(path: Path, blob: Blob, start: int, stop: int) -> np.ndarray:
    """Read slices of the first axis."""
    size, count = prod(blob.shape[1:]), max(stop - start, 0)
    return read_values(path, blob, first=start * size, count=count * size).reshape(count, *blob.shape[1:])


def _encoded(part: FloatWeight | CoremlWeight, rows: slice) -> tuple[np.ndarray, Any]:
    assert isinstance(part, CoremlWeight)
    return part.encode(rows)


def _joined(params: tuple[Any, ...]) -> Any:
    if isinstance(params[0], PaletteParams):
        return PaletteParams(table_LE=np.concatenate([part.table_LE for part in params]))
    return AffineParams(
        scale_RG=np.concatenate([part.scale_RG for part in params]),
        zero_point_RG=np.concatenate([part.zero_point_RG for part in params]),
    )
