"""The layout of the external data files: the place of every initializer, decided before any weight is read.

A matrix of the graph is stored as one initializer (floats) or as two or three (packed codes, scales, zero points). Some
matrices are stored together, because one onnxruntime operator multiplies with all of them:

    qkv_proj        q_proj, k_proj and v_proj, one below the other, if they have the same format
    experts.fc1     gate_proj and up_proj of every expert, alternating row by row, [experts, 2 · intermediate, hidden]
    experts.fc2     down_proj of every expert, [experts, hidden, intermediate]

Rows of the graph's matrices stay rows here (for MatMulNBits, and for FusedMatMul with transB). So a block of rows of a
weight is a block of bytes of each initializer, and can be written alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph, Kind, Role, module_name
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.targets.onnx.recipes import OnnxFormat

__all__ = [
    "CODES",
    "ROWS",
    "SCALES",
    "VALUES",
    "ZERO_POINTS",
    "DataPlan",
    "Initializer",
    "StoredMatrix",
    "experts_names",
    "experts_prefix",
    "fused_name",
    "plan_data",
    "stored_bytes",
    "stored_matrices",
]

CODES, SCALES, ZERO_POINTS, VALUES = "weight_codes", "weight_scales", "weight_zero_points", "weight"

# The embedding's codes as rows without groups, the shape in which they are gathered; the bytes are the same.
ROWS = "weight_rows"

# onnxruntime maps large initializers into memory, so they begin at a page.
PAGE, ALIGNMENT, PAGED_BYTES = 4096, 64, 1 << 20

SCALE_TYPES: Mapping[str, str] = {"f32": "<f4", "f16": "<f2"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Initializer:
    """One array in a data file; ``dtype`` is numpy's name of its type, ``file`` the number of the data file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    file: int = 0

    @property
    def num_bytes(self) -> int:
        return _num_bytes(self.dtype, self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the graph's weights; of a vector, all its bytes."""
        return self.num_bytes // self.num_rows

    @property
    def num_rows(self) -> int:
        return 1 if len(self.shape) == 1 else self.shape[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMatrix:
    """Weights stored together. ``segments`` follow one another; the roles within a segment alternate row by row."""

    name: str
    segments: tuple[tuple[Role, ...], ...]
    number_format: OnnxFormat
    is_stacked: bool = False

    @property
    def roles(self) -> Iterator[Role]:
        return (role for segment in self.segments for role in segment)

    @property
    def integers(self) -> AffineFormat | None:
        """The format of its codes; None where it is stored as floats."""
        return self.number_format if isinstance(self.number_format, AffineFormat) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class DataPlan:
    """The planned data files: matrices, the initializers of each by part, constants, and the size of each file."""

    matrices: Mapping[str, StoredMatrix]
    initializers: Mapping[str, Mapping[str, Initializer]]
    constants: Mapping[str, tuple[Initializer, np.ndarray]]
    file_bytes: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return sum(self.file_bytes)


def stored_matrices(config: Qwen3Config, formats: Mapping[str, OnnxFormat]) -> list[StoredMatrix]:
    """Everything that the graph reads, in the order of a forward pass, with its storage format."""

    def alone(kind: Kind, layer: int | None = None) -> StoredMatrix:
        role = Role(kind, layer)
        return StoredMatrix(name=module_name(role), segments=((role,),), number_format=formats[module_name(role)])

    found = [alone(Kind.EMBED_TOKENS)]
    for layer in range(config.num_hidden_layers):
        found += [alone(kind, layer) for kind in (Kind.INPUT_LAYERNORM, Kind.Q_NORM, Kind.K_NORM)]
        found += _attention(layer, formats)
        found += [alone(kind, layer) for kind in (Kind.O_PROJ, Kind.POST_ATTENTION_LAYERNORM)]
        if config.is_sparse_layer(layer):
            found += [alone(Kind.ROUTER, layer), *_experts(config, layer, formats)]
        else:
            found += [alone(kind, layer) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ, Kind.DOWN_PROJ)]
    found.append(alone(Kind.NORM))
    return found if config.tie_word_embeddings else [*found, alone(Kind.LM_HEAD)]


def plan_data(
    graph: Graph,
    matrices: Sequence[StoredMatrix],
    constants: Mapping[str, np.ndarray],
    *,
    most_bytes: int | None = None,
) -> DataPlan:
    """Place every initializer, from shapes and formats alone; no file grows beyond ``most_bytes``.

    An initializer lies in one file, so a file that holds a single larger one is as large as that.
    """
    wanted = {
        f"{matrix.name}.{part}": described
        for matrix in matrices
        for part, described in _parts(matrix.number_format, _shape(graph, matrix)).items()
    }
    wanted |= {name: (array.dtype.str, array.shape) for name, array in constants.items()}
    places, file_bytes = _lay_out(wanted, most_bytes)
    parts_of = {matrix.name: _parts(matrix.number_format, _shape(graph, matrix)) for matrix in matrices}
    return DataPlan(
        matrices={matrix.name: matrix for matrix in matrices},
        initializers={name: {part: places[f"{name}.{part}"] for part in parts} for name, parts in parts_of.items()},
        constants={name: (places[name], array) for name, array in constants.items()},
        file_bytes=file_bytes,
    )


def fused_name(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.qkv_proj"


def experts_names(layer: int) -> tuple[str, str]:
    """Names of fc1 (gate_proj and up_proj) and fc2 (down_proj)."""
    return f"{experts_prefix(layer)}.fc1", f"{experts_prefix(layer)}.fc2"


def experts_prefix(layer: int) -> str:
    """How names of what all experts of a layer share begin."""
    return f"model.layers.{layer}.mlp.experts"


def stored_bytes(number_format: OnnxFormat, shape: tuple[int, ...]) -> int:
    """Bytes of a weight in this format, without what aligns it."""
    return sum(_num_bytes(*described) for described in _parts(number_format, shape).values())


def _attention(layer: int, formats: Mapping[str, OnnxFormat]) -> list[StoredMatrix]:
    roles = [Role(kind, layer) for kind in (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ)]
    chosen = [formats[module_name(role)] for role in roles]
    if chosen.count(chosen[0]) == len(chosen):
        segments = tuple((role,) for role in roles)
        return [StoredMatrix(name=fused_name(layer), segments=segments, number_format=chosen[0])]
    return [
        StoredMatrix(name=module_name(role), segments=((role,),), number_format=number_format)
        for role, number_format in zip(roles, chosen, strict=True)
    ]


def _experts(config: Qwen3Config, layer: int, formats: Mapping[str, OnnxFormat]) -> list[StoredMatrix]:
    experts = range(config.num_experts)
    gated = tuple((Role(Kind.GATE_PROJ, layer, e), Role(Kind.UP_PROJ, layer, e)) for e in experts)
    down = tuple((Role(Kind.DOWN_PROJ, layer, e),) for e in experts)
    fc1, fc2 = experts_names(layer)
    return [
        StoredMatrix(name=name, segments=segments, number_format=formats[module_name(segments[0][0])], is_stacked=True)
        for name, segments in ((fc1, gated), (fc2, down))
    ]


def _shape(graph: Graph, matrix: StoredMatrix) -> tuple[int, ...]:
    shapes = [graph[role].shape for role in matrix.roles]
    if len(shapes[0]) == 1:
        return shapes[0]
    rows = sum(shape[0] for shape in shapes)
    return (rows, shapes[0][1])


def _parts(number_format: OnnxFormat, shape: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What a matrix is stored as, as rows [rows, …], whatever dimensions the operator wants above."""
    if not isinstance(number_format, AffineFormat):
        (values,) = number_format.array_types(shape).values()
        return {VALUES: (values.dtype, shape)}
    rows, columns = shape
    size = number_format.columns_a_group(columns)
    groups, bits = columns // size, number_format.num_bits
    scale_type = SCALE_TYPES[number_format.scale_dtype]
    parts = {CODES: ("|u1", (rows, groups, size * bits // 8)), SCALES: (scale_type, (rows, groups))}
    if not number_format.symmetric:
        parts[ZERO_POINTS] = ("|u1", (rows, -(-groups * bits // 8)))
    return parts


def _lay_out(
    wanted: Mapping[str, tuple[str, tuple[int, ...]]], most_bytes: int | None
) -> tuple[dict[str, Initializer], tuple[int, ...]]:
    """Place large arrays first: they are usually whole pages, so little padding lies between. Also returns the ends."""
    places: dict[str, Initializer] = {}
    ends = [0]
    for name in sorted(wanted, key=lambda name: _num_bytes(*wanted[name]) < PAGED_BYTES):
        dtype, shape = wanted[name]
        num_bytes = _num_bytes(dtype, shape)
        step = PAGE if num_bytes >= PAGED_BYTES else ALIGNMENT
        offset = -(-ends[-1] // step) * step
        if most_bytes is not None and offset and offset + num_bytes > most_bytes:
            ends.append(0)
            offset = 0
        places[name] = Initializer(name=name, dtype=dtype, shape=shape, offset=offset, file=len(ends) - 1)
        ends[-1] = offset + num_bytes
    return places, tuple(ends)


def _num_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
