"""A thin wrapper over onnx-ir: nodes in order, initializers in the data file, and types of values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from qwen3_export.targets.onnx.layout import Initializer

__all__ = ["MICROSOFT", "GraphBuilder"]

MICROSOFT = "com.microsoft"

DATA_TYPES = {
    "<f4": ir.DataType.FLOAT,
    "<f2": ir.DataType.FLOAT16,
    "|u1": ir.DataType.UINT8,
    "<i8": ir.DataType.INT64,
}


class GraphBuilder:
    """Collects nodes and initializers; ``data_files`` hold the initializers' bytes."""

    def __init__(self, data_files: Sequence[str]) -> None:
        self.data_files = data_files
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def op(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        name: str,
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: int | float | str,
    ) -> ir.Value:
        """Add a node with one output, which takes the name ``name``."""
        return self.ops(op_type, *inputs, names=[name], domain=domain, dtype=dtype, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        names: Sequence[str],
        domain: str = "",
        dtype: ir.DataType | None = None,
        **attributes: int | float | str,
    ) -> list[ir.Value]:
        """Add a node with several outputs; an empty name leaves an output out."""
        kind = None if dtype is None else ir.TensorType(dtype)
        outputs = [ir.Value(name=name, type=kind if name else None) for name in names]
        node = ir.node(op_type, list(inputs), attributes, domain=domain, outputs=outputs, name=f"{names[0]}/{op_type}")
        self.nodes.append(node)
        return list(node.outputs)

    def stored(self, place: Initializer, *, name: str | None = None, shape: tuple[int, ...] | None = None) -> ir.Value:
        """An initializer in a data file. Another name and shape give a second view of the same bytes."""
        name, shape = name or place.name, shape or place.shape
        if name not in self.initializers:
            tensor = ir.ExternalTensor(
                self.data_files[place.file],
                place.offset,
                place.num_bytes,
                DATA_TYPES[place.dtype],
                shape=ir.Shape(shape),
                name=name,
            )
            self._add(name, tensor, shape, DATA_TYPES[place.dtype])
        return self.initializers[name]

    def integers(self, *numbers: int) -> ir.Value:
        """A small constant int64 vector."""
        name = f"integers[{','.join(map(str, numbers))}]"
        if name not in self.initializers:
            tensor = ir.tensor(np.array(numbers, np.int64), name=name)
            self._add(name, tensor, (len(numbers),), ir.DataType.INT64)
        return self.initializers[name]

    def byte(self, number: int) -> ir.Value:
        """A constant number of type uint8."""
        name = f"byte[{number}]"
        if name not in self.initializers:
            self._add(name, ir.tensor(np.array(number, np.uint8), name=name), (), ir.DataType.UINT8)
        return self.initializers[name]

    def scalar(self, number: int) -> ir.Value:
        """A constant int64 number."""
        name = f"integer[{number}]"
        if name not in self.initializers:
            self._add(name, ir.tensor(np.array(number, np.int64), name=name), (), ir.DataType.INT64)
        return self.initializers[name]

    def _add(self, name: str, tensor: ir.TensorProtocol, shape: tuple[int, ...], dtype: ir.DataType) -> None:
        self.initializers[name] = ir.Value(
            name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor
        )
