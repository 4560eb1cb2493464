"""Find the bytes of each weight in a .pte, and read them back.

A program does not say which of its blobs is which weight. But XNNPACK keeps codes as we pack them, so an export can
search the program for its own bytes and write down where they are (``qwen3_export.json``). A check then reads values
from the program itself. Its number ``conversion`` shows that the runtime really multiplies with these bytes.
"""

# O out  I in  G groups a row

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qwen3_export.errors import CheckpointError
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.files.positional import read_exactly
from qwen3_export.files.shown import shown
from qwen3_export.graph import ALL_ROWS, Graph, Role, Weight, module_name
from qwen3_export.quantizers.affine import AffineFormat, AffineParams
from qwen3_export.quantizers.floats import F32
from qwen3_export.quantizers.formats import Codes
from qwen3_export.quantizers.packing.bits import from_unsigned, unpack_bits
from qwen3_export.quantizers.packing.executorch import (
    pack_embedding_int4,
    pack_xnnpack_int4,
    unpack_embedding_int4,
)
from qwen3_export.quantizers.packing.torchao import (
    ROWS_TOGETHER,
    pack_universal,
    universal_block_bytes,
    unpack_universal,
)
from qwen3_export.quantizers.weights.protocols import QuantizedWeight, read_quantized
from qwen3_export.rope import rotation
from qwen3_export.targets.executorch.recipes import ExecutorchFormat, integers_of

__all__ = [
    "INDEX",
    "StoredWeight",
    "constant_differences",
    "find_constants",
    "find_weights",
    "read_index",
    "read_weights",
    "weight_differences",
]

INDEX = "qwen3_export.json"
EPS = "rms_norm_eps"
# Beyond any program's size, and near enough to be searched.
MAX_PLACE = 1 << 42

# Bytes that a search reads at once, and weights that it compares at once.
SEARCH_WINDOW, SEARCHED_WEIGHTS = 1 << 24, 1 << 20

# Layouts of codes: nibbles with the even column low (XNNPACK) or high (embedding_4bit), bytes, or eight rows together
# with their scales (experts).
LOW_FIRST, HIGH_FIRST, BYTES, FLOATS = "int4", "int4_high_first", "int8", "fp32"
EIGHT_ROWS = {4: "int4_eight_rows", 8: "int8_eight_rows"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredWeight:
    """A weight in a program; ``codes`` (or floats) and ``scales`` are offsets, ``layout`` says how codes lie."""

    role: Role
    shape: tuple[int, ...]
    path: Path
    layout: str
    codes: int
    scales: int = 0
    number_format: ExecutorchFormat = F32

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, AffineParams | None]:
        """The stored codes and parameters of a block of rows; a vector is one row."""
        start, stop, _ = rows.indices(self.shape[0])
        integers = integers_of(self.number_format)
        if integers is None:
            return self._floats(start, stop), None
        if self.layout in EIGHT_ROWS.values():
            return self._eight_rows(integers, start, stop)
        return self._integers(integers, start, stop)

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return read_quantized(self, rows)

    def _floats(self, start: int, stop: int) -> Codes:
        columns = self.shape[1] if len(self.shape) > 1 else 1
        values = self._read(self.codes + 4 * start * columns, 4 * (stop - start) * columns).view("<f4")
        return values.reshape(-1, columns) if len(self.shape) > 1 else values[None]

    def _integers(self, integers: AffineFormat, start: int, stop: int) -> tuple[Codes, AffineParams]:
        count, columns = stop - start, self.shape[1]
        row_bytes = columns if self.layout == BYTES else columns // 2
        data = self._read(self.codes + start * row_bytes, count * row_bytes).reshape(count, row_bytes)
        if self.layout == BYTES:
            codes = data.view(np.int8)
        elif self.layout == LOW_FIRST:
            codes = from_unsigned(unpack_bits(data, 4), 4)
        else:
            codes = unpack_embedding_int4(data)
        groups = columns // integers.columns_a_group(columns)
        is_half = integers.scale_dtype == "bf16"
        size = groups * (2 if is_half else 4)
        raw = self._read(self.scales + start * size, count * size)
        scale = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32) if is_half else raw.view("<f4")
        scale_OG = scale.reshape(count, groups).astype(np.float32)
        return codes, AffineParams(scale_RG=scale_OG, zero_point_RG=np.zeros(scale_OG.shape, np.int8))

    def _eight_rows(self, integers: AffineFormat, start: int, stop: int) -> tuple[Codes, AffineParams]:
        assert integers.group_size is not None
        sizes = {"group_size": integers.group_size, "num_bits": integers.num_bits}
        first, last = start // ROWS_TOGETHER, -(-stop // ROWS_TOGETHER)
        block = universal_block_bytes(self.shape[1], **sizes)
        data = self._read(self.codes + first * block, (last - first) * block)
        codes, params = unpack_universal(data.reshape(-1, block), columns=self.shape[1], **sizes)
        wanted = slice(start - first * ROWS_TOGETHER, stop - first * ROWS_TOGETHER)
        return codes[wanted], params.rows(wanted, of=len(codes))

    def _read(self, offset: int, num_bytes: int) -> np.ndarray:
        return np.frombuffer(read_exactly(self.path, offset, num_bytes, part=self.name), np.uint8)


def find_weights(program: Path, graph: Graph, formats: Mapping[str, ExecutorchFormat]) -> dict[str, dict[str, Any]]:
    """The place of every weight of the graph in a program that was made of it, by name.

    A weight is read and compared a few rows at a time. Raises CheckpointError if a weight's bytes are not found,
    because the backend has changed them.
    """
    found: dict[str, dict[str, Any]] = {}
    with program.open("rb") as file:
        searched = _Searched(file.fileno(), os.fstat(file.fileno()).st_size)
        for weight in graph:
            layout, parts = _find_parts(searched, weight, formats[weight.name])
            missing = [part for part, found_part in parts.items() if found_part.offset < 0]
            if missing:
                raise CheckpointError(
                    f"{weight.name}: its {missing[0]} are not in the program as they were exported; this version of "
                    "ExecuTorch lays weights out in another way"
                )
            found[weight.name] = {"layout": layout, **_group_size(formats[weight.name])}
            found[weight.name] |= {part: at.offset for part, at in parts.items()}
            found[weight.name]["bytes"] = {part: at.num_bytes for part, at in parts.items()}
            found[weight.name]["sha256"] = {part: at.digest.hexdigest() for part, at in parts.items()}
    return found


@dataclass(slots=True)
class _Part:
    """Codes or scales of a weight: where they begin (-1 if nowhere), and how much of them has been found."""

    offset: int
    num_bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def extend(self, value: bytes, *, is_there: bool) -> None:
        self.offset = self.offset if is_there else -1
        self.num_bytes += len(value)
        self.digest.update(value)


def _find_parts(searched: _Searched, weight: Weight, number_format: ExecutorchFormat) -> tuple[str, dict[str, _Part]]:
    layout, parts = "", {}
    for layout, block in _blocks(weight, number_format):  # noqa: B007 (the same for all)
        for part, value in block.items():
            if part not in parts:
                parts[part] = _Part(searched.find(value, kind=(weight.role.kind, part)))
            place = parts[part].offset + parts[part].num_bytes
            parts[part].extend(value, is_there=parts[part].offset >= 0 and searched.holds(value, place))
    return layout, parts


def weight_differences(program: Path, document: Mapping[str, Any]) -> list[str]:
    """List the weights whose bytes are no longer those that were exported, one sentence each."""
    differences = []
    with program.open("rb") as file:
        for name, entry in document.get("weights", {}).items():
            for part, expected in entry.get("sha256", {}).items():
                if _digest(file.fileno(), int(entry[part]), int(entry["bytes"][part])) != expected:
                    differences.append(f"{name}: its {part} in the program are not those that were exported")
    return differences


def _digest(descriptor: int, offset: int, count: int) -> str:
    found = hashlib.sha256()
    for start in range(offset, offset + count, SEARCH_WINDOW):
        found.update(os.pread(descriptor, min(SEARCH_WINDOW, offset + count - start), start))
    return found.hexdigest()


@dataclass(slots=True)
class _Searched:
    """A file to search for weights. Those of a kind follow one another, so each search begins where one ended."""

    descriptor: int
    size: int
    places: dict[Any, int] = field(default_factory=dict)  # where the last weight of each kind was found

    def find(self, value: bytes, *, kind: Any = None) -> int:
        """The offset of these bytes, or -1 if they are not in the file."""
        start = self.places.get(kind, max(self.places.values(), default=0))
        found = self._find(value, start, self.size)
        found = self._find(value, 0, min(self.size, start + len(value))) if found < 0 else found
        if found >= 0:
            self.places[kind] = found
        return found

    def find_all(self, value: bytes) -> list[int]:
        """Every offset of these bytes."""
        found, start = [], 0
        while (place := self._find(value, start, self.size)) >= 0:
            found.append(place)
            start = place + 1
        return found

    def holds(self, value: bytes, offset: int) -> bool:
        """True if these bytes are at this offset."""
        return os.pread(self.descriptor, len(value), offset) == value

    def _find(self, value: bytes, start: int, stop: int) -> int:
        for window in range(start, stop, SEARCH_WINDOW):
            data = os.pread(self.descriptor, min(SEARCH_WINDOW + len(value) - 1, stop - window), window)
            if (place := data.find(value)) >= 0:
                return window + place
        return -1


def find_constants(program: Path, graph: Graph, *, context: int) -> dict[str, list[int]]:
    """Find the other constants in the program: RoPE's tables, and every place that holds the eps of the norms.

    Raises CheckpointError if one of them is not found.
    """
    found: dict[str, list[int]] = {}
    with program.open("rb") as file:
        searched = _Searched(file.fileno(), os.fstat(file.fileno()).st_size)
        for name, value in _constants(graph, context).items():
            found[name] = searched.find_all(value) if name == EPS else [searched.find(value)]
            if not found[name] or found[name][0] < 0:
                raise CheckpointError(f"{program}: {name} is not in the program as it was exported")
    return found


def constant_differences(program: Path, graph: Graph, document: Mapping[str, Any], *, context: int) -> list[str]:
    """List the constants that differ from the checkpoint's, one sentence each."""
    places = document.get("constants")
    if not isinstance(places, Mapping):
        return ["qwen3_export.json does not say where RoPE's tables and eps are; export it again"]
    differences = []
    with program.open("rb") as file:
        for name, value in _constants(graph, context).items():
            found = [os.pread(file.fileno(), len(value), int(place)) for place in places.get(name, [])]
            if not found or any(data != value for data in found):
                told = "another number" if name == EPS else "other angles"
                differences.append(f"{name}: the program holds {told} than the checkpoint gives")
    return differences


def _constants(graph: Graph, context: int) -> dict[str, bytes]:
    turn = rotation(graph.config, start=0, count=context)
    tables = {"cos": turn.cos, "sin": turn.sin}
    found = {name: np.ascontiguousarray(table.numpy(), "<f4").tobytes() for name, table in tables.items()}
    return {**found, EPS: np.float32(graph.config.rms_norm_eps).tobytes()}


def read_index(folder: Path) -> dict[str, Any]:
    """Read the index that an export wrote beside its program. Raises CheckpointError if it is missing or damaged."""
    path = folder / INDEX
    document = read_json(path)
    fields = Fields(document, path)
    fields.integer("group_size")
    constants, weights = fields.object("constants") or {}, fields.object("weights") or {}
    for name in constants:
        places = Fields(constants, path).integers(name)
        if not all(map(_is_place, places)):
            raise CheckpointError(f"{path}: does not say where {shown(name)} lies; export it again")
    for name, entry in weights.items():
        if not isinstance(entry, dict) or not _is_entry(Fields(entry, path)):
            raise CheckpointError(f"{path}: does not say where {shown(name)} lies; export it again")
    return document


def _is_entry(entry: Fields) -> bool:
    """Whether an entry states a layout, places, and the lengths and digests of what lies there."""
    codes, scales = entry.integer("codes"), entry.integer("scales")
    sizes, digests = entry.object("bytes") or {}, entry.object("sha256") or {}
    return (
        entry.text("layout") is not None
        and (entry.integer("group_size") or 1) > 0
        and _is_place(codes)
        and (scales is None or _is_place(scales))
        and all(isinstance(size, int) and _is_place(size) for size in sizes.values())
        and digests.keys() <= sizes.keys()
        and ("scales" not in digests or scales is not None)
        and digests.keys() <= {"codes", "scales"}
    )


def _is_place(value: int | None) -> bool:
    return value is not None and 0 <= value < MAX_PLACE


def read_weights(program: Path, graph: Graph, document: Mapping[str, Any]) -> Graph:
    """The (untied) checkpoint's graph with the program's values. Raises CheckpointError if a weight is missing."""
    weights: dict[str, Weight] = {}
    for weight in graph:
        try:
            weights[weight.name] = _stored(weight, document["weights"][weight.name], document, program)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{weight.name}: {INDEX} does not say where it is; export it again") from error
    return graph.with_weights(MappingProxyType(weights))


def _stored(weight: Weight, entry: Mapping[str, Any], document: Mapping[str, Any], program: Path) -> StoredWeight:
    layout = entry["layout"]
    number_format = _format(layout, int(entry.get("group_size", document["group_size"])))
    if weight.shape[-1] % (number_format.columns_together or 1):
        raise ValueError(f"{weight.name}: groups do not divide its columns")
    return StoredWeight(
        role=weight.role,
        shape=weight.shape,
        path=program,
        layout=layout,
        codes=int(entry["codes"]),
        scales=int(entry.get("scales", 0)),
        number_format=number_format,
    )


def _group_size(number_format: ExecutorchFormat) -> dict[str, int]:
    """What an entry says of groups; programs of older versions have one size for all, beside the entries."""
    size = None if number_format.is_float else number_format.columns_together
    return {} if size is None else {"group_size": size}


def _format(layout: str, group_size: int) -> ExecutorchFormat:
    if layout == FLOATS:
        return F32
    if layout in EIGHT_ROWS.values():
        return AffineFormat(num_bits=4 if layout == EIGHT_ROWS[4] else 8, group_size=group_size)
    if layout == BYTES:
        return AffineFormat(num_bits=8)
    if layout == HIGH_FIRST:
        return AffineFormat(num_bits=4, group_size=32)
    return AffineFormat(num_bits=4, group_size=group_size, scale_dtype="bf16")


def _blocks(weight: Weight, number_format: ExecutorchFormat) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The layout of a weight, and its codes and scales as the program holds them, some rows at a time."""
    columns = weight.shape[1] if len(weight.shape) > 1 else 1
    step = max(ROWS_TOGETHER, SEARCHED_WEIGHTS // columns // ROWS_TOGETHER * ROWS_TOGETHER)
    for start in range(0, weight.shape[0], step):
        yield _bytes_of(weight, number_format, slice(start, min(start + step, weight.shape[0])))


def _bytes_of(weight: Weight, number_format: ExecutorchFormat, rows: slice) -> tuple[str, dict[str, bytes]]:
    integers = integers_of(number_format)
    if integers is None:
        return FLOATS, {"codes": np.ascontiguousarray(weight.read(rows), "<f4").tobytes()}
    assert isinstance(weight, QuantizedWeight)
    codes_OI, params = weight.encode(rows)
    if weight.role.expert is not None:
        bits = integers.num_bits
        return EIGHT_ROWS[bits], {"codes": pack_universal(codes_OI, params, num_bits=bits).tobytes()}
    scales = np.ascontiguousarray(params.scale_RG, "<f4")
    if integers.num_bits == 8:
        return BYTES, {"codes": codes_OI.tobytes(), "scales": scales.tobytes()}
    if integers.scale_dtype == "bf16":
        packed = pack_xnnpack_int4(codes_OI, params)
        halves = (scales.view(np.uint32) >> np.uint32(16)).astype("<u2")
        return LOW_FIRST, {"codes": packed.weight_OY.tobytes(), "scales": halves.tobytes()}
    return HIGH_FIRST, {"codes": pack_embedding_int4(codes_OI).tobytes(), "scales": scales.tobytes()}
