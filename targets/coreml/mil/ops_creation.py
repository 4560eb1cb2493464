"""Operations that make their results from shapes and positions rather than from values.

Sources: coremltools' ``defs/iOS15/tensor_operation.py``, and ``defs/iOS17/quantization_ops.py`` for ``quantize`` and
``dequantize``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import Ints
from qwen3_export.targets.coreml.mil.element_types import by_name

__all__ = ["OPS"]


def _shape(x: Tensor) -> Tensor:
    return torch.tensor(x.shape, dtype=torch.int32)


def _fill(shape: Ints, value: Tensor | None = None) -> Tensor:
    return torch.zeros(shape) if value is None else value.reshape(()).expand(shape).clone()


def _fill_like(ref_tensor: Tensor, value: Tensor | None = None) -> Tensor:
    return _fill(tuple(ref_tensor.shape), value)


def _range_1d(start: Tensor, end: Tensor, step: Tensor) -> Tensor:
    return torch.arange(start.item(), end.item(), step.item(), dtype=start.dtype)


def _band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """Zero all elements of the last two axes outside a diagonal band. A negative number keeps that whole side."""
    rows, columns = torch.arange(x.shape[-2]).unsqueeze(1), torch.arange(x.shape[-1])
    kept = torch.ones(x.shape[-2:], dtype=torch.bool)
    if lower >= 0:
        kept &= rows - columns <= lower
    if upper >= 0:
        kept &= columns - rows <= upper
    return torch.where(kept, x, torch.zeros_like(x))


def _one_hot(
    indices: Tensor,
    one_hot_vector_size: int,
    axis: int = -1,
    on_value: Tensor | None = None,
    off_value: Tensor | None = None,
) -> Tensor:
    rank = indices.dim() + 1
    places = torch.arange(one_hot_vector_size).reshape([-1 if i == axis % rank else 1 for i in range(rank)])
    on = torch.tensor(1) if on_value is None else on_value.reshape(())
    off = torch.tensor(0, dtype=on.dtype) if off_value is None else off_value.reshape(())
    return torch.where(indices.unsqueeze(axis) == places, on, off)


def _non_zero(x: Tensor) -> Tensor:
    return torch.nonzero(x)


def _quantize(
    input: Tensor, scale: Tensor, output_dtype: str, zero_point: Tensor | None = None, axis: int | None = None
) -> Tensor:
    """clip(round(input / scale) + zero_point)."""
    limits = torch.iinfo(by_name(output_dtype).torch_type or torch.int8)
    shifted = (input / _along(scale, input, axis)).round()
    if zero_point is not None:
        shifted = shifted + _along(zero_point, input, axis)
    return shifted.clamp(limits.min, limits.max)


def _dequantize(input: Tensor, scale: Tensor, zero_point: Tensor | None = None, axis: int | None = None) -> Tensor:
    """scale * (input - zero_point)."""
    shifted = input.float()
    if zero_point is not None:
        shifted = shifted - _along(zero_point, input, axis)
    return _along(scale, input, axis) * shifted


def _along(values: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """A scalar unchanged, or a vector reshaped to lie along an axis of x."""
    if values.dim() == 0 or axis is None:
        return values.float()
    return values.float().reshape([-1 if i == axis % x.dim() else 1 for i in range(x.dim())])


OPS: Mapping[str, Callable[..., Tensor]] = {
    "band_part": _band_part,
    "dequantize": _dequantize,
    "fill": _fill,
    "fill_like": _fill_like,
    "non_zero": _non_zero,
    "one_hot": _one_hot,
    "quantize": _quantize,
    "range_1d": _range_1d,
    "shape": _shape,
}
