"""Reductions over axes (sums, means, extremes, norms), sorting and cumulative sums.

Source: coremltools' ``defs/iOS15/reduction.py`` and ``tensor_operation.py``. MIL does not specify the order of equal
elements; here the lower index comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import Ints, Tensors

__all__ = ["OPS"]

Operator = Callable[..., Tensor | Tensors]
Reduction = Callable[[Tensor, list[int], bool], Tensor]


def _over_axes(reduce: Reduction) -> Operator:
    def apply(x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
        over = list(range(x.dim())) if axes is None else [axis % x.dim() for axis in axes]
        return reduce(x, over, keep_dims)

    return apply


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep)


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return (x if x.is_floating_point() else x.double()).mean(axes, keepdim=keep)


def _prod(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _l2_norm(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return _sum(x.square(), axes, keep).sqrt()


def _log_sum_exp(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.logsumexp(x, axes, keepdim=keep)


def _arg(find: Callable[..., Tensor]) -> Operator:
    def apply(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
        del output_dtype  # the declared type of the result says the same
        return find(x, dim=axis, keepdim=keep_dims)

    return apply


def _topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> Tensors:
    """Also sorts if ``sort`` is False, which allows any order."""
    del sort, output_indices_dtype
    values, indices = torch.sort(x, dim=axis, descending=not ascending, stable=True)
    first = (values.narrow(axis, 0, k), indices.narrow(axis, 0, k))
    return first if return_indices else first[:1]


def _argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    forward = x.flip(axis) if reverse else x
    sums = forward.cumsum(axis, dtype=x.dtype)
    if exclusive:
        sums = torch.cat([torch.zeros_like(sums.narrow(axis, 0, 1)), sums.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return sums.flip(axis) if reverse else sums


OPS: Mapping[str, Operator] = {
    "argsort": _argsort,
    "cumsum": _cumsum,
    "reduce_argmax": _arg(torch.argmax),
    "reduce_argmin": _arg(torch.argmin),
    "reduce_l1_norm": _over_axes(lambda x, axes, keep: _sum(x.abs(), axes, keep)),
    "reduce_l2_norm": _over_axes(_l2_norm),
    "reduce_log_sum": _over_axes(lambda x, axes, keep: _sum(x, axes, keep).log()),
    "reduce_log_sum_exp": _over_axes(_log_sum_exp),
    "reduce_max": _over_axes(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "reduce_mean": _over_axes(_mean),
    "reduce_min": _over_axes(lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    "reduce_prod": _over_axes(_prod),
    "reduce_sum": _over_axes(_sum),
    "reduce_sum_square": _over_axes(lambda x, axes, keep: _sum(x.square(), axes, keep)),
    "topk": _topk,
}
