"""Convolution and pooling over one, two or three spatial axes.

Sources: coremltools' ``defs/iOS15/conv.py`` and ``pool.py``. torch pads both sides of an axis equally and Core ML need
not, so inputs are padded first.
"""

# N batch  C channels  then the spatial axes

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.targets.coreml.mil.calls import Ints
from qwen3_export.targets.coreml.mil.padding import Pads, extend, paddings, reach

__all__ = ["OPS"]

CONV = (functional.conv1d, functional.conv2d, functional.conv3d)
CONV_TRANSPOSE = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)
MAX_POOL = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
AVG_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    axes = x.dim() - 2
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    pads = paddings(pad_type, x.shape[2:], reach(weight.shape[2:], dilations), strides, pad)
    return CONV[axes - 1](extend(x, pads), weight, bias, strides, 0, dilations, groups)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    pad: Ints | None = None,
    output_shape: Ints | None = None,
    pad_type: str = "valid",
    strides: Ints | None = None,
    dilations: Ints | None = None,
    groups: int = 1,
) -> Tensor:
    """Compute the whole result, then cut off the padding. A larger ``output_shape`` adds zeros at the end."""
    axes = x.dim() - 2
    strides, dilations = strides or (1,) * axes, dilations or (1,) * axes
    whole = CONV_TRANSPOSE[axes - 1](x, weight, None, strides, 0, 0, groups, dilations)
    if pad_type.lower() in ("same", "same_lower"):
        wanted = output_shape[2:] if output_shape else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        before = [max(0, have - want) // 2 for have, want in zip(whole.shape[2:], wanted, strict=True)]
    else:
        pads = paddings(pad_type, x.shape[2:], weight.shape[2:], strides, pad)
        before = [first for first, _ in pads]
        cut = [have - sum(pair) for have, pair in zip(whole.shape[2:], pads, strict=True)]
        wanted = output_shape[2:] if output_shape else cut
    for axis, (first, want) in enumerate(zip(before, wanted, strict=True), start=2):
        whole = whole.narrow(axis, first, min(want, whole.shape[axis] - first))
    whole = extend(whole, [(0, want - have) for want, have in zip(wanted, whole.shape[2:], strict=True)])
    return whole if bias is None else whole + bias.reshape(1, -1, *[1] * axes)


def _max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or (1,) * len(kernel_sizes)
    pads = paddings(pad_type, x.shape[2:], kernel_sizes, strides, pad)
    ragged = _overhang(x, kernel_sizes, strides, pads, ceil_mode)
    whole = extend(extend(x, pads, value=-math.inf), ragged, value=-math.inf)
    return MAX_POOL[len(kernel_sizes) - 1](whole, kernel_sizes, strides)


def _avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """Sums over counts. Padding counts unless it is excluded; the elements that ``ceil_mode`` adds never count."""
    strides = strides or (1,) * len(kernel_sizes)
    pads = paddings(pad_type, x.shape[2:], kernel_sizes, strides, pad)
    ragged = _overhang(x, kernel_sizes, strides, pads, ceil_mode)
    ones = torch.ones(1, 1, *x.shape[2:])
    counted = extend(extend(ones, pads, value=0.0 if exclude_padding_from_average else 1.0), ragged)
    total = _sums(extend(extend(x, pads), ragged), kernel_sizes, strides)
    return total / _sums(counted, kernel_sizes, strides)


def _l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    pad_type: str,
    strides: Ints | None = None,
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    strides = strides or (1,) * len(kernel_sizes)
    pads = paddings(pad_type, x.shape[2:], kernel_sizes, strides, pad)
    ragged = _overhang(x, kernel_sizes, strides, pads, ceil_mode)
    return _sums(extend(extend(x.square(), pads), ragged), kernel_sizes, strides).sqrt()


def _sums(x: Tensor, kernel_sizes: Ints, strides: Ints) -> Tensor:
    return AVG_POOL[len(kernel_sizes) - 1](x, kernel_sizes, strides) * math.prod(kernel_sizes)


def _overhang(x: Tensor, kernel_sizes: Ints, strides: Ints, pads: Pads, ceil_mode: bool) -> Pads:
    """How much to add at the end of each axis so that the last window is whole.

    If strides exceed the kernel and nothing is padded, coremltools counts a window that begins outside the input. Here
    its maximum is minus infinity and its average is NaN; torch would leave the window out.
    """
    if not ceil_mode:
        return [(0, 0)] * len(kernel_sizes)
    added = []
    for size, kernel, stride, pair in zip(x.shape[2:], kernel_sizes, strides, pads, strict=True):
        whole = size + sum(pair)
        count = -(-(whole - kernel) // stride) + 1
        if (count - 1) * stride >= size + pair[0] and sum(pair) > 0:
            count -= 1
        added.append((0, max(0, (count - 1) * stride + kernel - whole)))
    return added


OPS: Mapping[str, Callable[..., Tensor]] = {
    "avg_pool": _avg_pool,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "l2_pool": _l2_pool,
    "max_pool": _max_pool,
}
