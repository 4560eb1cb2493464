"""From a program's values to the arguments of the function that stands for an operation.

The functions in ``ops_*.py`` take tensors and plain Python values, under MIL's parameter names. Which of the two a
parameter is, its annotation says; here the annotations are read once, and values converted by them. Two annotations
ask for something that is no input of the operation: ``Rounding`` and ``SpecVersion``.
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
SpecVersion = NewType("SpecVersion", int)  # the package's: a few operators changed their meaning


class Rounding(Protocol):
    """What a result inside an operation goes through, as the operation's own result does."""

    def __call__(self, value: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A function with its parameters' converters; ``injected`` are those that no input of the operation fills."""

    function: Callable[..., Tensor | Tensors]
    converters: Mapping[str, Callable[[Value], Any]]
    injected: Mapping[str, Any]

    def __call__(self, values: Mapping[str, Value], *, rounding: Rounding, version: SpecVersion) -> Tensors:
        """The results. ValueError where the operation has an input that the function does not know."""
        unknown = sorted(values.keys() - self.converters.keys())
        if unknown:
            raise ValueError(f"its input {', '.join(unknown)} is not known to this executor")
        given = {Rounding: rounding, SpecVersion: version}
        arguments = {name: self.converters[name](value) for name, value in values.items()}
        arguments |= {name: given[kind] for name, kind in self.injected.items()}
        results = self.function(**arguments)
        return results if isinstance(results, tuple) else (results,)


def call_of(function: Callable[..., Tensor | Tensors]) -> Call:
    """Read a function's annotations."""
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
    """A vector or a scalar; several values where the program binds an element each."""
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
