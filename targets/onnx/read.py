"""Read an ONNX folder back: values from the data files, wiring and hyperparameters from the checkpoint.

Each initializer says where its bytes are. The operators that use it say how to read its codes (bits, block size). Rows
are read by position. Missing weights and wrong shapes are returned as a list of sentences, because a report shows all
of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from qwen3_export.errors import CheckpointError, MissingExtraError, QuantizationError
from qwen3_export.files.damage import told_as_damage
from qwen3_export.files.inside import inside
from qwen3_export.files.positional import read_exactly
from qwen3_export.files.shown import shown
from qwen3_export.graph import ALL_ROWS, Graph, Kind, Role, Weight, module_name
from qwen3_export.quantizers.affine import AffineFormat, AffineParams
from qwen3_export.quantizers.packing.onnx import MatMulNBits, unpack_matmul_nbits
from qwen3_export.targets.onnx.foreign import own_names
from qwen3_export.targets.onnx.layout import (
    CODES,
    ROWS,
    SCALES,
    VALUES,
    ZERO_POINTS,
    Initializer,
    experts_names,
    fused_name,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

__all__ = ["FloatWeight", "OnnxFile", "OnnxWeight", "graph_path_of", "open_onnx", "read_graph", "tensor_differences"]

# onnx.TensorProto.DataType
NUMPY_TYPES = {1: "<f4", 2: "|u1", 7: "<i8", 10: "<f2"}
FLOAT_NAMES = {"<f4": "F32", "<f2": "F16"}
# What an attribute of the wrong type or size leads to.
UNREADABLE = (KeyError, ValueError, TypeError, ZeroDivisionError, QuantizationError)
ATTENTION = (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ)


@dataclass(frozen=True, kw_only=True)
class OnnxFile:
    """An ONNX graph without its weights.

    ``proto`` is the graph, ``folder`` is the exported folder.
    """

    folder: Path
    graph_path: Path
    proto: ModelProto

    @cached_property
    def own_names(self) -> Mapping[str, str]:
        """This toolkit's name for each initializer."""
        return own_names(tensor.name for tensor in self.proto.graph.initializer)

    @cached_property
    def initializers(self) -> Mapping[str, Initializer]:
        """The initializers in data files, by this toolkit's names; those inside the graph are not among them."""
        files = {path: i for i, path in enumerate(self.data_paths)}
        found = {}
        for tensor in self.proto.graph.initializer:
            place = _place(tensor)
            if place is not None:
                found[self.own_names[place.name]] = replace(place, file=files[self._data_path(_location(tensor))])
        return found

    @cached_property
    def attributes(self) -> Mapping[str, Mapping[str, Any]]:
        """The attributes of the operator that reads each codes initializer, by initializer name."""
        return {
            self.own_names.get(name, name): attributes
            for node, attributes in nodes_with_attributes(self.proto.graph)
            for name in node.input
            if node.op_type in ("MatMulNBits", "GatherBlockQuantized", "QMoE")
        }

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self.proto.metadata_props}

    @cached_property
    def data_paths(self) -> tuple[Path, ...]:
        """The files that hold external initializers; none if all are in the graph."""
        names = dict.fromkeys(_location(tensor) for tensor in self.proto.graph.initializer if tensor.external_data)
        return tuple(self._data_path(name) for name in sorted(names, key=_natural))

    def path_of(self, place: Initializer) -> Path:
        """The file that an initializer lies in."""
        return self.data_paths[place.file]

    def _data_path(self, name: str) -> Path:
        return inside(self.graph_path.parent, name, named_by=self.graph_path)

    @property
    def size_bytes(self) -> int:
        """All files of the folder, without those of other graphs beside this one."""
        others = [path.name for path in self.graph_path.parent.glob("*.onnx") if path != self.graph_path]
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sum(
            path.stat().st_size
            for path in files
            if not any(path.name == name or path.name.startswith(f"{name}{mark}") for name in others for mark in "_.")
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatWeight:
    """A weight of the graph stored as floats; its rows begin at ``first`` and are ``stride`` rows apart."""

    role: Role
    shape: tuple[int, ...]
    place: Initializer
    paths: tuple[Path, ...]
    first: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return FLOAT_NAMES[self.place.dtype]

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        if len(self.shape) == 1:
            return _rows(self, self.place, slice(0, 1)).reshape(-1).astype(np.float32)[rows]
        return _rows(self, self.place, rows).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxWeight:
    """A weight of the graph stored as codes, with one place for each part."""

    role: Role
    shape: tuple[int, ...]
    number_format: AffineFormat
    places: Mapping[str, Initializer]
    paths: tuple[Path, ...]
    first: int = 0
    stride: int = 1

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    def encode(self, rows: slice = ALL_ROWS) -> tuple[np.ndarray, AffineParams]:
        """The stored codes and parameters of a block of rows."""
        parts = {part: _rows(self, place, rows) for part, place in self.places.items()}
        count = len(parts[SCALES])
        size = self.number_format.columns_a_group(self.shape[1])
        packed = MatMulNBits(
            weight_OGY=parts[CODES].reshape(count, -1, size * self.number_format.num_bits // 8),
            scale_OG=parts[SCALES].reshape(count, -1).astype(np.float32),
            zero_points_OY=parts[ZERO_POINTS].reshape(count, -1) if ZERO_POINTS in parts else None,
        )
        return unpack_matmul_nbits(packed, num_bits=self.number_format.num_bits)

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.number_format.dequantize(*self.encode(rows))


def open_onnx(folder: Path) -> OnnxFile:
    """Read the graph of an exported folder (or the graph's own path), without its weights.

    Raises CheckpointError if there is no graph, if there are several, or if the graph cannot be parsed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MissingExtraError(package="onnx", extra="onnx", purpose="reading an ONNX graph") from error
    from google.protobuf.message import DecodeError

    path = graph_path_of(folder)
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, OSError) as error:
        raise CheckpointError(f"{path}: no ONNX graph ({error})") from error
    root = path.parent if folder.is_file() and path.parent.name != "onnx" else folder
    if folder.is_file() and path.parent.name == "onnx":
        root = path.parent.parent
    file = OnnxFile(folder=root, graph_path=path, proto=proto)
    _check_texts(file)
    with told_as_damage(path):
        _check_length(file)
        _ = file.attributes
    return file


def read_graph(file: OnnxFile, checkpoint: Graph) -> Graph:
    """The checkpoint's graph with the values in the data file.

    Raises CheckpointError if ``tensor_differences`` finds a difference.
    """
    missing = tensor_differences(file, checkpoint)
    if missing:
        raise CheckpointError(f"{file.graph_path}: {missing[0]}")
    weights = {weight.name: _stored(file, weight) for weight in checkpoint}
    return checkpoint.with_weights(MappingProxyType(weights))


def tensor_differences(file: OnnxFile, checkpoint: Graph) -> list[str]:
    """List weights that are missing or have another shape, one sentence each."""
    found = []
    for weight in checkpoint:
        try:
            stored = _stored(file, weight)
        except UNREADABLE as error:
            found.append(f"{weight.name} is missing, or cannot be read ({error})")
            continue
        rows, columns = weight.shape[0], weight.shape[-1]
        if isinstance(stored, FloatWeight):
            fits = stored.place.row_bytes == columns * np.dtype(stored.place.dtype).itemsize
        else:
            size = stored.number_format.columns_a_group(columns)
            fits = stored.places[SCALES].row_bytes == columns // size * np.dtype(stored.places[SCALES].dtype).itemsize
        last = stored.first + (rows - 1) * stored.stride
        height = (stored.place if isinstance(stored, FloatWeight) else stored.places[SCALES]).num_rows
        if not fits or (len(weight.shape) > 1 and last >= height):
            found.append(f"{weight.name} has another shape than the checkpoint's {list(weight.shape)}")
    return found


def nodes_with_attributes(graph: GraphProto) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Every node with its attributes as plain values."""
    from onnx.helper import get_attribute_value

    for node in graph.node:
        yield node, {attribute.name: get_attribute_value(attribute) for attribute in node.attribute}


def _stored(file: OnnxFile, weight: Weight) -> FloatWeight | OnnxWeight:
    """A weight of the checkpoint as the file stores it. Raises KeyError if it is not there."""
    role, shape = weight.role, weight.shape
    name, first, stride = module_name(role), 0, 1
    is_alone = any(f"{name}.{part}" in file.initializers for part in (VALUES, CODES))
    if role.kind in ATTENTION and not is_alone:
        assert role.layer is not None
        name, first = fused_name(role.layer), _rows_before(file, weight)
    elif role.expert is not None:
        assert role.layer is not None
        fc1, fc2 = experts_names(role.layer)
        is_down = role.kind is Kind.DOWN_PROJ
        name, stride = (fc2, 1) if is_down else (fc1, 2)
        first = role.expert * shape[0] * stride + (role.kind is Kind.UP_PROJ)
    if f"{name}.{VALUES}" in file.initializers:
        place = file.initializers[f"{name}.{VALUES}"]
        return FloatWeight(role=role, shape=shape, place=place, paths=file.data_paths, first=first, stride=stride)
    codes = f"{name}.{CODES}" if f"{name}.{CODES}" in file.initializers else f"{name}.{ROWS}"
    places = {CODES: file.initializers[codes], SCALES: file.initializers[f"{name}.{SCALES}"]}
    if f"{name}.{ZERO_POINTS}" in file.initializers:
        places[ZERO_POINTS] = file.initializers[f"{name}.{ZERO_POINTS}"]
    return OnnxWeight(
        role=role,
        shape=shape,
        number_format=_number_format(
            file.attributes.get(codes) or _packing(places, shape[-1]), places, is_fc2=name.endswith(".fc2")
        ),
        places=places,
        paths=file.data_paths,
        first=first,
        stride=stride,
    )


def _rows_before(file: OnnxFile, weight: Weight) -> int:
    """The number of rows above this weight in a fused matrix of q_proj, k_proj and v_proj."""
    kind = weight.role.kind
    if kind is Kind.Q_PROJ:
        return 0
    assert weight.role.layer is not None
    parts = [f"{fused_name(weight.role.layer)}.{part}" for part in (VALUES, SCALES)]
    found = [file.initializers[part].num_rows for part in parts if part in file.initializers]
    if not found:
        raise KeyError(parts[0])
    whole = found[0]
    return whole - weight.shape[0] * (2 if kind is Kind.K_PROJ else 1)


def _number_format(attributes: Mapping[str, Any], places: Mapping[str, Initializer], *, is_fc2: bool) -> AffineFormat:
    bits = attributes.get("bits", attributes.get("expert_weight_bits", 4))
    if is_fc2:
        bits = attributes.get("fc2_expert_weight_bits", bits)
    is_symmetric = ZERO_POINTS not in places
    return AffineFormat(
        num_bits=bits,
        group_size=attributes["block_size"],
        symmetric=is_symmetric,
        negative_scales=is_symmetric,
        scale_dtype="f32" if places[SCALES].dtype == "<f4" else "f16",
    )


def _packing(places: Mapping[str, Initializer], columns: int) -> dict[str, int]:
    """Bits and block size of codes [rows, groups, bytes] that no operator states: standard operators unpack them."""
    _, groups, size = places[CODES].shape
    if columns % groups or 8 * size % (columns // groups):
        raise KeyError(places[CODES].name)
    return {"bits": 8 * size // (columns // groups), "block_size": columns // groups}


def _rows(weight: FloatWeight | OnnxWeight, place: Initializer, rows: slice) -> np.ndarray:
    """Rows of one part: one contiguous read that keeps every ``stride``-th row."""
    start, stop = (0, 1) if len(weight.shape) == 1 else rows.indices(weight.shape[0])[:2]
    count = max(stop - start, 0)
    first, size = weight.first + start * weight.stride, max((count - 1) * weight.stride + 1, 0)
    data = read_exactly(
        weight.paths[place.file], place.offset + first * place.row_bytes, size * place.row_bytes, part=weight.name
    )
    return np.frombuffer(data, np.dtype(place.dtype)).reshape(size, -1)[:: weight.stride]


def _place(tensor: Any) -> Initializer | None:
    """An initializer's place in the data file. Stacked experts, [experts, rows, …], become rows."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in entries or tensor.data_type not in NUMPY_TYPES:
        return None
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 1:
        return None
    if ".experts." in tensor.name and len(shape) > 2:
        shape = (shape[0] * shape[1], *shape[2:])
    dtype = NUMPY_TYPES[tensor.data_type]
    return Initializer(name=tensor.name, dtype=dtype, shape=shape, offset=int(entries.get("offset", 0)))


def _location(tensor: Any) -> str:
    return next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")


def _natural(name: str) -> tuple[int, str]:
    """``model.onnx_data`` before ``model.onnx_data_1`` before ``model.onnx_data_10``."""
    return len(name), name


def graph_path_of(folder: Path) -> Path:
    if folder.is_file():
        return folder
    found = sorted([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")])
    if not found:
        raise CheckpointError(f"{folder}: holds no .onnx file; name the folder that an export has written")
    if len(found) > 1:
        raise CheckpointError(f"{folder}: holds {len(found)} graphs; name one of them, such as {found[0]}")
    return found[0]


def _check_texts(file: OnnxFile) -> None:
    """Refuse names that are not UTF-8, which protobuf gives as bytes."""
    graph = file.proto.graph
    named: Iterator[Any] = chain(graph.node, graph.initializer, graph.input, graph.output)
    texts = chain(
        (message.name for message in named),
        (text for node in graph.node for text in (node.op_type, node.domain, *node.input, *node.output)),
        (attribute.name for node in graph.node for attribute in node.attribute),
        (text for tensor in graph.initializer for entry in tensor.external_data for text in (entry.key, entry.value)),
        (text for entry in file.proto.metadata_props for text in (entry.key, entry.value)),
        (size.dim_param for value in graph.input for size in value.type.tensor_type.shape.dim),
    )
    wrong = next((text for text in texts if not isinstance(text, str)), None)
    if wrong is not None:
        told = shown(wrong.decode(errors="replace"))
        raise CheckpointError(f"{file.graph_path}: has a name or a record that is not UTF-8 ({told}); get it again")


def _check_length(file: OnnxFile) -> None:
    """Refuse data files that are missing or cut short."""
    ends = [0] * len(file.data_paths)
    for path in file.data_paths:
        if not path.exists():
            raise CheckpointError(f"{path}: is missing; the graph keeps its weights there")
    for place in file.initializers.values():
        if place.offset < 0:
            raise CheckpointError(
                f"{file.graph_path}: {shown(place.name)} lies at no place in {file.path_of(place).name}; get it again"
            )
        ends[place.file] = max(ends[place.file], place.offset + place.num_bytes)
    for path, end in zip(file.data_paths, ends, strict=True):
        if path.stat().st_size < end:
            raise CheckpointError(
                f"{path}: {path.stat().st_size:,} bytes where the graph needs {end:,}; it is cut short"
            )
