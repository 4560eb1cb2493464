"""Matrix products and attention.

Sources: coremltools' ``defs/iOS15/linear.py`` and ``defs/iOS18/transformers.py``. A device may compute
``scaled_dot_product_attention`` in fp16 throughout, so each of its steps is rounded like a result. This shows scores
that overflow, and rows of scores that become NaN.
"""

# B batch axes  L queries  S keys  E head size

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.targets.coreml.mil.calls import Rounding, Tensors

__all__ = ["OPS"]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return functional.linear(x, weight, bias)


def _matmul(x: Tensor, y: Tensor, transpose_x: bool = False, transpose_y: bool = False) -> Tensor:
    """A transposition swaps the last two axes, and leaves a vector unchanged."""
    left = x.mT if transpose_x and x.dim() > 1 else x
    right = y.mT if transpose_y and y.dim() > 1 else y
    return torch.matmul(left, right)


def _einsum(values: Tensors, equation: str) -> Tensor:
    return torch.einsum(equation, *values)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, rounding: Rounding, attn_mask: Tensor | None = None
) -> Tensor:
    """softmax(query @ key.T / sqrt(E) + mask) @ value. A boolean mask is True for the keys that take part."""
    scores_BLS = rounding(torch.matmul(query, key.mT) / math.sqrt(query.shape[-1]))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores_BLS = scores_BLS.masked_fill(~attn_mask, -math.inf)
    elif attn_mask is not None:
        scores_BLS = rounding(scores_BLS + attn_mask)
    return torch.matmul(rounding(torch.softmax(scores_BLS, -1)), value)


OPS: Mapping[str, Callable[..., Tensor]] = {
    "einsum": _einsum,
    "linear": _linear,
    "matmul": _matmul,
    "scaled_dot_product_attention": _attention,
}
