"""Read a Core ML package back: values from weight.bin, wiring and hyperparameters from the checkpoint.

The saved program lists every constant with its name, type, shape and place in weight.bin. Rows are read by position.
Missing weights and wrong shapes are returned as a list of sentences, because a report shows all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from qwen3_export.errors import CheckpointError, QuantizationError
from qwen3_export.files.damage import told_as_damage
from qwen3_export.files.inside import inside
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.targets.coreml.blobs import ELEMENTS, Blob, read_record
from qwen3_export.targets.coreml.extra import require_coremltools
from qwen3_export.targets.coreml.names import HEAD_PART, MODEL_FILE, PACKAGE, WEIGHT_FILE, mil_name
from qwen3_export.targets.coreml.stored import StoredWeight, join_parts, stored_weight

__all__ = [
    "CoremlFile",
    "head_parts",
    "open_coreml",
    "read_graph",
    "read_package",
    "tensor_differences",
]

# Rows of a tied head that are compared with the embedding at once.
ROW_BLOCK = 1024
# How a program spells the folder that it lies in.
MODEL_PATH = "@model_path/"


@dataclass(frozen=True, kw_only=True)
class CoremlFile:
    """A package without its weights.

    ``spec`` is coremltools' Model protobuf; ``folder`` is the exported folder.
    """

    folder: Path
    package: Path
    spec: Any

    @property
    def weight_path(self) -> Path:
        return self.package / WEIGHT_FILE

    @property
    def metadata(self) -> dict[str, str]:
        return dict(self.spec.description.metadata.userDefined)

    @property
    def size_bytes(self) -> int:
        """Size of the package: program and weights."""
        return sum(path.stat().st_size for path in self.package.rglob("*") if path.is_file())

    @cached_property
    def operations(self) -> tuple[Any, ...]:
        """The operations in the only block of ``main``."""
        function = self.spec.mlProgram.functions["main"]
        return tuple(function.block_specializations[function.opset].operations)

    @cached_property
    def constants(self) -> Mapping[str, Mapping[str, Blob]]:
        """Every constant in weight.bin: its parts, by the name of its value."""
        found: dict[str, Mapping[str, Blob]] = {}
        for operation in self.operations:
            if operation.type == "const" or operation.type.startswith("constexpr_"):
                name = operation.outputs[0].name
                values = dict(operation.attributes)
                values |= {part: argument.arguments[0].value for part, argument in operation.inputs.items()}
                parts = {part: self._blob(name, value) for part, value in values.items() if _is_in_file(value)}
                found |= {name: parts} if parts else {}
        return MappingProxyType(found)

    def _blob(self, name: str, value: Any) -> Blob:
        tensor = value.type.tensorType
        shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
        element = _element_name(tensor.dataType)
        if element not in ELEMENTS:
            raise CheckpointError(f"{self.package}: {name} is of type {element}, which this reader does not know")
        stated = value.blobFileValue.fileName.removeprefix(MODEL_PATH)
        path = inside((self.package / MODEL_FILE).parent, stated, named_by=self.package / MODEL_FILE)
        if path != self.weight_path:
            raise CheckpointError(f"{self.package}: keeps {name} in {path.name}, where this reader knows {WEIGHT_FILE}")
        return read_record(path, value.blobFileValue.offset, name=name, element=element, shape=shape)


def open_coreml(path: Path) -> CoremlFile:
    """Read the program of an exported folder (or of the package itself), without its weights.

    Raises CheckpointError if there is no package, if it cannot be parsed, or if a part of it is missing.
    """
    require_coremltools("reading a Core ML package")
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    package = _package_path(path)
    spec = Model_pb2.Model()
    try:
        spec.ParseFromString((package / MODEL_FILE).read_bytes())
    except (DecodeError, OSError) as error:
        raise CheckpointError(f"{package / MODEL_FILE}: no Core ML model ({error})") from error
    if spec.WhichOneof("Type") != "mlProgram" or "main" not in spec.mlProgram.functions:
        raise CheckpointError(f"{package}: no ML program with a function main; check a package that this toolkit wrote")
    file = CoremlFile(folder=path if package != path else package, package=package, spec=spec)
    with told_as_damage(package):
        _check_length(file)
    return file


def read_package(path: Path, checkpoint: Graph) -> tuple[Graph, dict[str, str]]:
    """Read a package: the checkpoint's graph with the package's values, and the package's metadata."""
    file = open_coreml(path)
    return read_graph(file, checkpoint), file.metadata


def read_graph(file: CoremlFile, checkpoint: Graph) -> Graph:
    """The checkpoint's graph with the values in weight.bin.

    Raises CheckpointError if ``tensor_differences`` finds a difference.
    """
    missing = tensor_differences(file, checkpoint)
    if missing:
        raise CheckpointError(f"{file.package}: {missing[0]}")
    return checkpoint.with_weights({weight.name: _stored(file, weight) for weight in checkpoint})


def tensor_differences(file: CoremlFile, checkpoint: Graph) -> list[str]:
    """List weights that are missing or have another shape, and a tied head that differs from the embedding."""
    found = []
    for weight in checkpoint:
        try:
            stored = _stored(file, weight)
        except (IndexError, KeyError, QuantizationError, TypeError, ValueError) as error:
            found.append(f"{weight.name} is missing, or cannot be read ({error})")
            continue
        if stored.shape != weight.shape:
            found.append(f"{weight.name} has shape {list(stored.shape)}, the checkpoint's has {list(weight.shape)}")
    return found or _head_differences(file, checkpoint)


def head_parts(file: CoremlFile) -> list[str]:
    """Names of the parts of a split head, in the order of their rows."""
    found = (name for name in file.constants if name.startswith(HEAD_PART))
    return sorted(found, key=lambda name: int(name.removeprefix(HEAD_PART)))


def _head_differences(file: CoremlFile, checkpoint: Graph) -> list[str]:
    """A tied head that is split is stored a second time; check that it equals the embedding."""
    if not head_parts(file) or not checkpoint.config.tie_word_embeddings:
        return []
    embedding = checkpoint.head
    whole, head = _stored(file, embedding), _split(file, embedding.role)
    if head.shape != whole.shape:
        return [f"the parts of the head have shape {list(head.shape)}, the embedding {list(whole.shape)}"]
    for first in range(0, whole.shape[0], ROW_BLOCK):
        rows = slice(first, min(first + ROW_BLOCK, whole.shape[0]))
        if not np.array_equal(whole.read(rows), head.read(rows)):
            return [f"the head differs from the embedding that it is tied to (row {first} or after)"]
    return []


def _stored(file: CoremlFile, weight: Weight) -> StoredWeight:
    """A weight of the checkpoint as the file stores it. Raises KeyError if it is not there."""
    name = mil_name(weight.name)
    if weight.role.kind is Kind.LM_HEAD and name not in file.constants and head_parts(file):
        return _split(file, weight.role)
    return stored_weight(weight.role, file.constants[name], file.weight_path)


def _split(file: CoremlFile, role: Role) -> StoredWeight:
    return join_parts([stored_weight(role, file.constants[name], file.weight_path) for name in head_parts(file)])


def _is_in_file(value: Any) -> bool:
    return bool(value.WhichOneof("value") == "blobFileValue")


def _element_name(data_type: int) -> str:
    """The name (``fp16``, ``int4``, …) of MIL's data type number."""
    from coremltools.proto import MIL_pb2

    name = str(MIL_pb2.DataType.Name(data_type)).lower()
    return {"float16": "fp16", "float32": "fp32"}.get(name, name)


def _package_path(path: Path) -> Path:
    if (path / MODEL_FILE).exists():
        return path
    if (path / PACKAGE / MODEL_FILE).exists():
        return path / PACKAGE
    found = sorted(path.glob("*.mlpackage"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(f"{path}: holds {len(found)} packages; name one of them, such as {found[0]}")
    raise CheckpointError(f"{path}: holds no .mlpackage; name the folder that an export has written")


def _check_length(file: CoremlFile) -> None:
    """Refuse a weight file that is cut short."""
    path = file.weight_path
    if not path.exists():
        raise CheckpointError(f"{path}: is missing; the program keeps its weights there")
    end = max((blob.end for parts in file.constants.values() for blob in parts.values()), default=0)
    if path.stat().st_size < end:
        raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes where the program needs {end:,}; it is cut short")
