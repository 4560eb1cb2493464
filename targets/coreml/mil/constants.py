"""The constants of a program, read and decoded when an operation needs them.

A model's weights in fp32 can be larger than memory, so a large constant is decoded again at each use unless ``keep`` is
set. Small constants always stay in memory: axes, shapes and norms are used all the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from qwen3_export.targets.coreml.mil.arithmetic import Arithmetic
from qwen3_export.targets.coreml.mil.blobs import read_blob
from qwen3_export.targets.coreml.mil.calls import Value
from qwen3_export.targets.coreml.mil.constexpr import CONSTEXPR
from qwen3_export.targets.coreml.mil.element_types import to_torch
from qwen3_export.targets.coreml.mil.program import Binding, Literal, Operation

__all__ = ["Constants", "value_of"]

SMALL_BYTES = 1 << 20


class Constants:
    """Constants by name. With ``keep``, all of them stay in memory in fp32 once decoded."""

    def __init__(self, operations: Iterable[Operation], *, keep: bool = False) -> None:
        self._makers = {v.name: (o, i) for o in operations for i, v in enumerate(o.outputs)}
        self._keep = keep
        self._kept: dict[tuple[str, str], Value] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._makers

    def get(self, name: str, arithmetic: Arithmetic) -> Value:
        """Get a constant. The mode decides whether decoded weights are rounded to fp16."""
        operation, index = self._makers[name]
        key = (name, arithmetic.name if operation.kind in CONSTEXPR else "")
        if key in self._kept:
            return self._kept[key]
        value = self._make(operation, index, arithmetic)
        if self._keep or _bytes(value) <= SMALL_BYTES:
            self._kept[key] = value
        return value

    def _make(self, operation: Operation, index: int, arithmetic: Arithmetic) -> Value:
        if operation.kind == "const":
            (binding,) = operation.inputs["val"]
            return value_of(binding) if isinstance(binding, Literal) else self.get(binding, arithmetic)
        inputs = {key: self._stored(bindings[0], arithmetic) for key, bindings in operation.inputs.items()}
        made = CONSTEXPR[operation.kind](inputs)
        result = made[index] if isinstance(made, tuple) else made
        element = operation.outputs[index].type.element
        return arithmetic.round_in_place(arithmetic.stored(result, element, moved=True), element)

    def _stored(self, binding: Binding, arithmetic: Arithmetic) -> Any:
        """An input of a constexpr as the file stores it; integers of few bits take one byte each."""
        if isinstance(binding, Literal):
            return binding.value if binding.blob is None else read_blob(binding.blob)
        return self.get(binding, arithmetic)


def value_of(literal: Literal) -> Value:
    """Convert a literal to an argument of an operation."""
    if literal.blob is not None:
        return to_torch(read_blob(literal.blob))
    return _value(literal.value)


def _value(value: Any) -> Value:
    if isinstance(value, str):
        return value
    return tuple(map(_value, value)) if isinstance(value, tuple) else to_torch(value)


def _bytes(value: Value) -> int:
    return value.nbytes if isinstance(value, Tensor) else 0
