"""Run a plan: one operation after another, with the live values in a dictionary."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qwen3_export.errors import CheckpointError
from qwen3_export.targets.coreml.mil.arithmetic import Arithmetic, Overflow, broken
from qwen3_export.targets.coreml.mil.calls import SpecVersion, Tensors, Value, call_of
from qwen3_export.targets.coreml.mil.constants import Constants, value_of
from qwen3_export.targets.coreml.mil.ops_slicing import write_slice
from qwen3_export.targets.coreml.mil.plan import Plan, Step
from qwen3_export.targets.coreml.mil.program import Binding, Literal, Variable
from qwen3_export.targets.coreml.mil.table import MOVES, calls

__all__ = ["Execution", "Watch"]

Watch = Callable[[str, str, Tensor], None]
Values = dict[str, Tensor]
WRITE_SLICE = call_of(write_slice)


@dataclass(kw_only=True)
class Execution:
    """One run of a function.

    ``states`` belongs to the caller and is written to. ``overflow`` is set by the end of the run. ``watch`` is called
    with each operation's kind, the name of its result, and the result. The result is valid only during the call,
    because it may be a view of a state.
    """

    path: Path
    constants: Constants
    states: Values
    arithmetic: Arithmetic
    version: SpecVersion
    watch: Watch | None = None
    overflow: Overflow | None = field(default=None, init=False)

    def run(self, plan: Plan, values: Values) -> list[Tensor]:
        """Compute a block's outputs from its inputs and the values around it. ``values`` is consumed."""
        for step in plan.steps:
            results = self._step(step, values)
            for variable, result in zip(step.operation.outputs, results, strict=True):
                _check_shape(self.path, step, variable, result)
                values[variable.name] = result
                if self.watch is not None:
                    self.watch(step.operation.kind, variable.name, result)
            for name in step.drops:
                del values[name]
        return [self._tensor(name, values) for name in plan.outputs]

    def _step(self, step: Step, values: Values) -> Tensors:
        kind = step.operation.kind
        special = SPECIAL.get(kind)
        try:
            return special(self, step, values) if special else self._call(step, values)
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{self.path}: {kind} {step.operation.name} cannot be run: {reason}") from error

    def _call(self, step: Step, values: Values) -> Tensors:
        operation = step.operation
        inputs = {key: self._argument(bindings, values) for key, bindings in operation.inputs.items()}
        moved = operation.kind in MOVES
        rounding = self.arithmetic.rounding(operation.outputs[0].type.element)
        call = WRITE_SLICE if self._may_write(step, inputs, values) else calls()[operation.kind]
        found = call(inputs, rounding=rounding, version=self.version)
        results = tuple(
            self.arithmetic.stored(result, variable.type.element, moved=moved)
            for variable, result in zip(operation.outputs, found, strict=True)
        )
        if self.arithmetic.rounds and not moved and self.overflow is None:
            self._look_at(step, results, inputs)
        return results

    def _look_at(self, step: Step, results: Tensors, inputs: Mapping[str, Value]) -> None:
        found = broken(results, _tensors(inputs.values()))
        if found is not None:
            index, how = found
            name = step.operation.outputs[index].name
            self.overflow = Overflow(op=step.operation.kind, output=name, kind=how)

    def _argument(self, bindings: tuple[Binding, ...], values: Values) -> Value:
        if len(bindings) == 1:
            return self._value(bindings[0], values)
        return tuple(self._value(binding, values) for binding in bindings)

    def _value(self, binding: Binding, values: Values) -> Value:
        if isinstance(binding, Literal):
            return value_of(binding)
        if binding in values:
            return values[binding]
        if binding in self.constants:
            return self.constants.get(binding, self.arithmetic)
        raise ValueError(f"nothing before it gives {binding}")

    def _tensor(self, name: str, values: Values) -> Tensor:
        value = self._value(name, values)
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{self.path}: its output {name} is no tensor")
        return value

    def _may_write(self, step: Step, inputs: Mapping[str, Value], values: Values) -> bool:
        """True if the operation reads the state itself, and no other live value shares the state's memory."""
        if step.in_place is None or inputs["x"] is not self.states[step.in_place]:
            return False
        memory = self.states[step.in_place].untyped_storage().data_ptr()
        (own,) = step.operation.inputs["x"]
        return all(value.untyped_storage().data_ptr() != memory for name, value in values.items() if name != own)

    def _read_state(self, step: Step, values: Values) -> Tensors:
        del values
        return (self.states[str(step.operation.inputs["input"][0])],)

    def _write_state(self, step: Step, values: Values) -> Tensors:
        """Write a state in place. This is safe: a state never shares memory with a constant or an input."""
        inputs = step.operation.inputs
        name = str(inputs["input" if "input" in inputs else "state"][0])
        value = self._value(inputs["data" if "data" in inputs else "value"][0], values)
        if not isinstance(value, Tensor) or value.shape != self.states[name].shape:
            raise ValueError(f"the value does not have the shape of the state {name}")
        if value is not self.states[name]:
            self.states[name] = value.clone(memory_format=torch.contiguous_format)
        return (self.states[name],) if step.operation.outputs else ()

    def _cond(self, step: Step, values: Values) -> Tensors:
        chosen = step.blocks[0 if bool(self._argument(step.operation.inputs["pred"], values)) else 1]
        return tuple(self.run(chosen, dict(values)))

    def _while_loop(self, step: Step, values: Values) -> Tensors:
        condition, body = step.blocks
        found = [self._value(binding, values) for binding in step.operation.inputs["loop_vars"]]
        carried = [value for value in found if isinstance(value, Tensor)]
        while bool(self.run(condition, {**values, **dict(zip(condition.inputs, carried, strict=True))})[0]):
            carried = self.run(body, {**values, **dict(zip(body.inputs, carried, strict=True))})
        return tuple(carried)


SPECIAL: Mapping[str, Callable[[Execution, Step, Values], Tensors]] = {
    "cond": Execution._cond,
    "coreml_update_state": Execution._write_state,
    "read_state": Execution._read_state,
    "while_loop": Execution._while_loop,
    "write_state": Execution._write_state,
}


def _tensors(values: Iterable[Value]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple):
            yield from _tensors(value)


def _check_shape(path: Path, step: Step, variable: Variable, result: Tensor) -> None:
    declared = variable.type.shape
    fits = len(declared) == result.dim() and all(
        want in (None, have) for want, have in zip(declared, result.shape, strict=True)
    )
    if not fits:
        raise CheckpointError(
            f"{path}: {step.operation.kind} {variable.name} gives {list(result.shape)} where the program declares "
            f"{[size or '?' for size in declared]}"
        )
