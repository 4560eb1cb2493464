"""A function of an ML program as plain records, without protobuf.

An operation's inputs are names of earlier results, or literal values. Constants are literals too: a ``const`` is an
operation with one literal, and so is the data of every ``constexpr``. Older constexprs (iOS 16 and 17) keep their data
in attributes and newer ones in inputs; here both are inputs. Large literals stay in weight.bin until they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError
from qwen3_export.files.inside import inside
from qwen3_export.targets.coreml.mil.blobs import Blob, unpack_elements
from qwen3_export.targets.coreml.mil.element_types import ElementType, by_number

__all__ = ["Block", "Function", "Literal", "Operation", "TensorType", "Variable", "all_operations", "read_function"]

MODEL_FOLDER = "@model_path/"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """Element type and shape; None is a size that is known only when the program runs."""

    element: ElementType
    shape: tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A name with a type: an input, a state or a result."""

    name: str
    type: TensorType
    is_state: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Literal:
    """A value stored in the program (``value``: array, string or tuple of values) or in weight.bin (``blob``)."""

    value: NDArray[np.generic] | str | tuple[Any, ...] | None = None
    blob: Blob | None = None


Binding = str | Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation; ``inputs`` maps each parameter to its bindings: one, or several if it takes a tuple."""

    kind: str
    inputs: Mapping[str, tuple[Binding, ...]]
    outputs: tuple[Variable, ...]
    blocks: tuple[Block, ...] = ()

    @property
    def name(self) -> str:
        """The operation's name in messages: its first result, or the state that it writes."""
        named = [binding for bindings in self.inputs.values() for binding in bindings if isinstance(binding, str)]
        return self.outputs[0].name if self.outputs else " ".join(named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Operations in order, with the block's inputs (of a loop) and the names of its outputs."""

    inputs: tuple[Variable, ...]
    operations: tuple[Operation, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """Inputs, states included, and body."""

    inputs: tuple[Variable, ...]
    body: Block


def read_function(proto: Any, *, folder: Path) -> Function:
    """Convert a ``MIL.proto`` Function to records; ``folder`` holds the program's file."""
    if proto.opset not in proto.block_specializations:
        raise CheckpointError(f"{folder}: the program has no operations for its own operator set {proto.opset}")
    return Function(
        inputs=tuple(map(_variable, proto.inputs)),
        body=_block(proto.block_specializations[proto.opset], folder),
    )


def all_operations(block: Block) -> Iterator[Operation]:
    """The operations of a block and of its inner blocks."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from all_operations(inner)


def _block(proto: Any, folder: Path) -> Block:
    return Block(
        inputs=tuple(map(_variable, proto.inputs)),
        operations=tuple(_operation(operation, folder) for operation in proto.operations),
        outputs=tuple(proto.outputs),
    )


def _operation(proto: Any, folder: Path) -> Operation:
    attributes = {key: (_literal(value, folder),) for key, value in proto.attributes.items() if key != "name"}
    inputs = {
        key: tuple(_binding(binding, folder) for binding in argument.arguments)
        for key, argument in proto.inputs.items()
    }
    return Operation(
        kind=proto.type,
        inputs={**attributes, **inputs},
        outputs=tuple(map(_variable, proto.outputs)),
        blocks=tuple(_block(block, folder) for block in proto.blocks),
    )


def _binding(proto: Any, folder: Path) -> Binding:
    return proto.name if proto.WhichOneof("binding") == "name" else _literal(proto.value, folder)


def _variable(proto: Any) -> Variable:
    is_state = proto.type.WhichOneof("type") == "stateType"
    value_type = proto.type.stateType.wrappedType if is_state else proto.type
    return Variable(name=proto.name, type=_tensor_type(value_type), is_state=is_state)


def _tensor_type(proto: Any) -> TensorType:
    """A tensor's type. For a list, which only control flow over lists uses, the type of an element."""
    if proto.WhichOneof("type") == "listType":
        return _tensor_type(proto.listType.type)
    tensor = proto.tensorType
    sizes = (d.constant.size if d.WhichOneof("dimension") == "constant" else None for d in tensor.dimensions)
    return TensorType(element=by_number(tensor.dataType), shape=tuple(sizes))


def _literal(proto: Any, folder: Path) -> Literal:
    if proto.WhichOneof("value") == "blobFileValue":
        return Literal(blob=_blob(proto, folder))
    immediate = proto.immediateValue
    if immediate.WhichOneof("value") == "list":
        return Literal(value=tuple(_literal(value, folder).value for value in immediate.list.values))
    declared = _tensor_type(proto.type)
    shape = tuple(size or 0 for size in declared.shape)
    return Literal(value=_immediate(immediate.tensor, declared.element, shape))


def _blob(proto: Any, folder: Path) -> Blob:
    name, declared = proto.blobFileValue.fileName, _tensor_type(proto.type)
    path = inside(folder, name.removeprefix(MODEL_FOLDER), named_by=folder / "model.mlmodel")
    shape = tuple(size or 0 for size in declared.shape)
    return Blob(path=path, offset=proto.blobFileValue.offset, element=declared.element, shape=shape)


def _immediate(tensor: Any, element: ElementType, shape: tuple[int, ...]) -> NDArray[np.generic] | str:
    """A value in the program, stored as a list of numbers or as bytes (fp16 and small integers)."""
    field = tensor.WhichOneof("value")
    if field == "strings":
        strings = tensor.strings.values
        return str(strings[0]) if shape == () else np.array(list(strings), np.str_).reshape(shape)
    count = int(np.prod(shape, dtype=np.int64))
    if field == "bytes":
        stored = np.frombuffer(tensor.bytes.values, np.uint8)
        return unpack_elements(stored, element, count).reshape(shape)
    values = getattr(tensor, field).values if field else ()
    return np.array(values, element.numpy_type).reshape(shape)
