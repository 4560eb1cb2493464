"""Turn a program's values into the arguments of the Python function that computes an operation.

The functions in ``ops_*.py`` take tensors and plain Python values under MIL's parameter names. Their annotations say
which type each parameter has. This module reads the annotations once and converts values accordingly. Two annotations
ask for something that is not an input of the operation: ``Rounding`` and ``SpecVersion``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NewType, Protocol

from torch import Tensor

__all__ = ["Call", "Ints", "Rounding", "SpecVersion", "Tensors", "Value", "call_of"]

Value = Tensor | str | tuple[Any, ...]
Ints = tuple[int, ...]
Tensors = tuple[Tensor, ...]
SpecVersion = NewType("SpecVersion", int)  # of the package: a few operators changed their meaning between versions


class Rounding(Protocol):
    """Rounds an intermediate value inside an operation as the operation's result is rounded."""

    def __call__(self, value: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function with the converters of its parameters; ``injected`` are the parameters that are not inputs."""

    function: Callable[..., Tensor | Tensors]
    converters: Mapping[str, Callable[[Value], Any]]
    injected: Mapping[str, Any]

    def __call__(self, values: Mapping[str, Value], *, rounding: Rounding, version: SpecVersion) -> Tensors:
        """Compute the results. Raises ValueError if the operation has an input that the function does not have."""
        unknown = sorted(values.keys() - self.converters.keys())
        if unknown:
            raise ValueError(f"its input {', '.join(unknown)} is not known to this executor")
        given = {Rounding: rounding, SpecVersion: version}
        arguments = {name: self.converters[name](value) for name, value in values.items()}
        arguments |= {name: given[kind] for name, kind in self.injected.items()}
        results = self.function(**arguments)
        return results if isinstance(results, tuple) else (results,)


def call_of(function: Callable[..., Tensor | Tensors]) -> Call:
    """Build a Call from a function's annotations."""
    kinds = {name: p.annotation for name, p in inspect.signature(function, eval_str=True).parameters.items()}
    return Call(
        function=function,
        converters={name: CONVERTERS[kind] for name, kind in kinds.items() if kind in CONVERTERS},
        injected={name: kind for name, kind in kinds.items() if kind not in CONVERTERS},
    )


def _tensor(value: Value) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{value!r} stands where a tensor should")
    return value


def _tensors(value: Value) -> Tensors:
    return value if isinstance(value, tuple) else (_tensor(value),)


def _ints(value: Value) -> Ints:
    """Integers of a vector or a scalar, or of several values if the program binds each element separately."""
    if isinstance(value, tuple):
        return tuple(number for element in value for number in _ints(element))
    return tuple(int(number) for number in _tensor(value).reshape(-1).tolist())


def _item(value: Value) -> Any:
    return _tensor(value).reshape(()).item()


def _text(value: Value) -> str:
    if not isinstance(value, str):
        raise ValueError("a tensor stands where a name should")
    return value


CONVERTERS: Mapping[Any, Callable[[Value], Any]] = {
    Tensor: _tensor,
    Tensor | None: _tensor,
    Tensors: _tensors,
    Ints: _ints,
    Ints | None: _ints,
    int: lambda value: int(_item(value)),
    int | None: lambda value: int(_item(value)),
    float: lambda value: float(_item(value)),
    bool: lambda value: bool(_item(value)),
    bool | None: lambda value: bool(_item(value)),
    str: _text,
}
