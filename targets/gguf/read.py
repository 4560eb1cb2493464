"""Read a GGUF file back: values from the file, wiring and hyperparameters from the checkpoint.

gguf-py's reader lists the contents and their places. Rows are then read by position, because pages of its memory map
would count as resident memory. Any Qwen3 GGUF can be read, whichever program wrote it. Missing tensors, extra tensors
and wrong shapes are returned as a list of sentences, not raised, because a report shows all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from qwen3_export.errors import CheckpointError
from qwen3_export.files.positional import read_exactly
from qwen3_export.graph import ALL_ROWS, Graph, Role, Weight, module_name
from qwen3_export.quantizers.weights.digests import digest_name
from qwen3_export.targets.gguf.bounds import check_bounds
from qwen3_export.targets.gguf.formats import FORMATS
from qwen3_export.targets.gguf.metadata import TENSOR_ERRORS, VALUE_DIGESTS
from qwen3_export.targets.gguf.names import gguf_tensors

__all__ = [
    "GgufFile",
    "GgufWeight",
    "StoredTensor",
    "open_gguf",
    "read_graph",
    "recorded_calibration",
    "recorded_digests",
    "split_parts",
    "tensor_differences",
]

Decoder = Literal["own", "gguf-py"]

SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """One tensor of the file; ``shape`` is outermost first, ``offset`` counts bytes from the start of ``path``."""

    name: str
    format: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """The contents of a GGUF file, or of all parts of a split one, in order; metadata as plain values.

    ``types`` are gguf-py's value types: one for a scalar, two for an array (itself, its items).
    """

    paths: tuple[Path, ...]
    metadata: Mapping[str, Any]
    types: Mapping[str, tuple[Any, ...]]
    tensors: Mapping[str, StoredTensor]

    @property
    def size_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.paths)

    @property
    def bits_per_weight(self) -> float:
        """Bits of tensor data per weight."""
        count = sum(int(np.prod(tensor.shape)) for tensor in self.tensors.values())
        return 8 * sum(tensor.num_bytes for tensor in self.tensors.values()) / max(count, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufWeight:
    """A weight of the graph as the file stores it; an expert is its slice of the stacked tensor.

    ``decoder`` selects our decoding or gguf-py's. gguf-py's was written independently, so ours is tested against it.
    """

    role: Role
    shape: tuple[int, ...]
    format: str
    path: Path
    offset: int
    row_bytes: int
    decoder: Decoder = "own"

    @property
    def name(self) -> str:
        return module_name(self.role)

    def read_bytes(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The stored bytes of a block of rows, uint8 [rows, row_bytes]; a vector is one row."""
        start, stop, _ = rows.indices(self.shape[0]) if len(self.shape) > 1 else (0, 1, 1)
        count = max(stop - start, 0)
        data = read_exactly(self.path, self.offset + start * self.row_bytes, count * self.row_bytes, part=self.name)
        return np.frombuffer(data, dtype=np.uint8).reshape(count, self.row_bytes)

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        blocks = self.read_bytes(rows)
        decode = _decode_by_gguf if self.decoder == "gguf-py" else _decode
        values = decode(self.format, blocks)
        return values[0][rows] if len(self.shape) == 1 else values

    def decoded_by(self, decoder: Decoder) -> GgufWeight:
        return replace(self, decoder=decoder)


def open_gguf(path: Path) -> GgufFile:
    """Read metadata and tensor table. For a split file, ``path`` may be any part.

    Raises CheckpointError if it is not a GGUF file, is cut short, or parts are missing.
    """
    paths = split_parts(path)
    parts = [_read_part(part) for part in paths]
    # The first part has all the metadata; the others have little more than their place.
    metadata = {key: value for part in reversed(parts) for key, value in part.metadata.items()}
    types = {key: value for part in reversed(parts) for key, value in part.types.items()}
    tensors = {name: tensor for part in parts for name, tensor in part.tensors.items()}
    return GgufFile(
        paths=tuple(paths),
        metadata=MappingProxyType(metadata),
        types=MappingProxyType(types),
        tensors=MappingProxyType(tensors),
    )


def read_graph(file: GgufFile, checkpoint: Graph, *, decoder: Decoder = "own") -> Graph:
    """The checkpoint's graph with the file's values. Raises CheckpointError if ``tensor_differences`` finds any."""
    differences = tensor_differences(file, checkpoint)
    if differences:
        raise CheckpointError(f"{file.paths[0]}: {differences[0]}")
    weights: dict[str, Weight] = {}
    for tensor in gguf_tensors(checkpoint):
        stored = file.tensors[tensor.name]
        member_bytes = stored.num_bytes // len(tensor.members)
        for i, member in enumerate(tensor.members):
            rows = member.shape[0] if len(member.shape) > 1 else 1
            weights[member.name] = GgufWeight(
                role=member.role, shape=member.shape, format=stored.format, path=stored.path,
                offset=stored.offset + i * member_bytes, row_bytes=member_bytes // rows, decoder=decoder,
            )  # fmt: skip
    return checkpoint.with_weights({name: weights[name] for name in checkpoint.weights})


def recorded_calibration(file: GgufFile) -> dict[str, Any] | None:
    """The calibration text that a file records, and each tensor's error; None if it records none."""
    errors = file.metadata.get(TENSOR_ERRORS)
    if not isinstance(errors, list) or not all(isinstance(error, float) for error in errors):
        return None
    measured = {name: error for name, error in zip(file.tensors, errors, strict=False) if error >= 0}
    keys = ("dataset", "sha256", "tokens")
    return {**{key: file.metadata.get(f"qwen3_export.calibration.{key}") for key in keys}, "tensor_errors": measured}


def recorded_digests(file: GgufFile, checkpoint: Graph) -> dict[str, str]:
    """The digests of values that a solver chose, by ``digest_name``; empty if the file records none."""
    digests = file.metadata.get(VALUE_DIGESTS)
    tensors = gguf_tensors(checkpoint)
    if not isinstance(digests, list) or len(digests) != len(tensors):
        return {}
    named = zip((digest_name(tensor.members[0].role) for tensor in tensors), digests, strict=True)
    return {name: digest for name, digest in named if isinstance(digest, str) and digest}


def tensor_differences(file: GgufFile, checkpoint: Graph) -> list[str]:
    """List tensors that are missing, extra, of another shape, or of a format that cannot be decoded."""
    expected = {tensor.name: tensor.shape for tensor in gguf_tensors(checkpoint)}
    found = []
    for name, shape in expected.items():
        stored = file.tensors.get(name)
        if stored is None:
            found.append(f"tensor {name} is missing")
        elif stored.shape != shape:
            found.append(f"tensor {name} has shape {list(stored.shape)}, the checkpoint {list(shape)}")
        elif stored.format not in FORMATS:
            found.append(f"tensor {name} is stored as {stored.format}, which cannot be decoded here")
    found += [f"tensor {name} is not part of the model" for name in file.tensors if name not in expected]
    return found


def split_parts(path: Path) -> list[Path]:
    """All parts of a split file, given any of them. A file that is not split is its only part."""
    match = SPLIT_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [path.with_name(f"{match['stem']}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise CheckpointError(f"{path.parent}: {missing[0]} is missing; a split file needs all its {count} parts")
    return parts


def _read_part(path: Path) -> GgufFile:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    check_bounds(path)
    try:
        reader = _reader(path)
        fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        metadata = {name: field.contents() for name, field in fields.items()}
        types = {name: tuple(dict.fromkeys(field.types)) for name, field in fields.items()}
        tensors = {
            tensor.name: StoredTensor(
                name=tensor.name,
                format=tensor.tensor_type.name,
                shape=tuple(int(size) for size in reversed(tensor.shape)),
                path=path,
                offset=int(tensor.data_offset),
                num_bytes=int(tensor.n_bytes),
            )
            for tensor in reader.tensors
        }
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise CheckpointError(f"{path}: not a GGUF file, or cut short ({error}); get it again") from error
    return GgufFile(paths=(path,), metadata=metadata, types=types, tensors=tensors)


def _reader(path: Path) -> Any:
    """gguf-py's reader with its memory map seen as a plain array, because then a view costs a tenth.

    A vocabulary of 152k tokens needs two million views.
    """
    from gguf import GGUFReader

    class Reader(GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> np.ndarray:
            return self._plain

        @data.setter
        def data(self, mapped: np.ndarray) -> None:
            self._plain = mapped.view(np.ndarray)

    return Reader(path)


def _decode(format_name: str, blocks_RY: np.ndarray) -> np.ndarray:
    number_format = FORMATS[format_name]
    return number_format.dequantize(*number_format.unpack(blocks_RY))


def _decode_by_gguf(format_name: str, blocks_RY: np.ndarray) -> np.ndarray:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    # For F32 and F16, gguf-py expects the type itself; for all other formats, bytes.
    typed = {"F32": np.float32, "F16": np.float16}.get(format_name)
    data = blocks_RY if typed is None else blocks_RY.view(typed)
    return np.asarray(dequantize(data, GGMLQuantizationType[format_name]), dtype=np.float32)
