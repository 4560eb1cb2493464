"""Elementwise operations: arithmetic, comparisons, logic, selection and type conversion.

Source: coremltools' ``defs/iOS15/elementwise_unary.py`` and ``elementwise_binary.py``. These files leave two points
open. As in numpy, ``mod`` has the sign of its divisor and ``floor_div`` rounds down. ``real_div`` of integers is
declared an integer, so its quotient is truncated towards zero when it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import Tensors
from qwen3_export.targets.coreml.mil.element_types import by_name

__all__ = ["OPS"]

Operator = Callable[..., Tensor | Tensors]


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    def apply(x: Tensor) -> Tensor:
        return function(x)

    return apply


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return apply


def _inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    return (x + epsilon).reciprocal()


def _log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    return (x + epsilon).log()


def _rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return 1.0 / (x + epsilon).sqrt()


def _clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


def _threshold(x: Tensor, alpha: float) -> Tensor:
    return x.clamp_min(alpha)


def _cast(x: Tensor, dtype: str) -> Tensor:
    """Floats become integers by truncation towards zero. Rounding to fp16 happens later, as for every result."""
    target = by_name(dtype)
    if target.torch_type is None:
        raise ValueError(f"values cannot be cast to {dtype}")
    return x != 0 if target.name == "bool" else x.to(target.torch_type)


def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond.bool(), a, b)


def _floor_div(x: Tensor, y: Tensor) -> Tensor:
    return torch.div(x, y, rounding_mode="floor")


def _identity(x: Tensor) -> Tensor:
    return x


OPS: Mapping[str, Operator] = {
    "abs": _unary(torch.abs),
    "acos": _unary(torch.acos),
    "asin": _unary(torch.asin),
    "atan": _unary(torch.atan),
    "atanh": _unary(torch.atanh),
    "ceil": _unary(torch.ceil),
    "cos": _unary(torch.cos),
    "cosh": _unary(torch.cosh),
    "erf": _unary(torch.erf),
    "exp": _unary(torch.exp),
    "exp2": _unary(torch.exp2),
    "floor": _unary(torch.floor),
    "logical_not": _unary(torch.logical_not),
    "round": _unary(torch.round),  # halves go to the even neighbour
    "sign": _unary(torch.sign),
    "sin": _unary(torch.sin),
    "sinh": _unary(torch.sinh),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "tan": _unary(torch.tan),
    "tanh": _unary(torch.tanh),
    "add": _binary(torch.add),
    "equal": _binary(torch.eq),
    "floor_div": _floor_div,
    "greater": _binary(torch.gt),
    "greater_equal": _binary(torch.ge),
    "less": _binary(torch.lt),
    "less_equal": _binary(torch.le),
    "logical_and": _binary(torch.logical_and),
    "logical_or": _binary(torch.logical_or),
    "logical_xor": _binary(torch.logical_xor),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "mod": _binary(torch.remainder),
    "mul": _binary(torch.mul),
    "not_equal": _binary(torch.ne),
    "pow": _binary(torch.pow),
    "real_div": _binary(torch.true_divide),
    "sub": _binary(torch.sub),
    "cast": _cast,
    "clip": _clip,
    "identity": _identity,
    "inverse": _inverse,
    "log": _log,
    "rsqrt": _rsqrt,
    "select": _select,
    "threshold": _threshold,
}
