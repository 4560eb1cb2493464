"""Padding of inputs before convolution and pooling. Source: coremltools' ``defs/_utils.py``.

Paddings are pairs (before, after), one for each spatial axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from qwen3_export.targets.coreml.mil.calls import Ints

__all__ = ["Pads", "extend", "paddings", "reach"]

Pads = list[tuple[int, int]]


def reach(kernel: Sequence[int], dilations: Sequence[int]) -> list[int]:
    """How many elements a kernel spans along each axis."""
    return [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]


def paddings(pad_type: str, sizes: Sequence[int], spans: Sequence[int], strides: Ints, pad: Ints | None) -> Pads:
    """Padding of each axis. ``same`` gives ceil(size / stride) outputs and puts an odd element at the end."""
    kind = pad_type.lower()
    if kind == "valid" or (kind == "custom" and pad is None):
        return [(0, 0)] * len(sizes)
    if kind == "custom" and pad is not None:
        return list(zip(pad[0::2], pad[1::2], strict=True))
    if kind not in ("same", "same_lower"):
        raise ValueError(f"its pad_type {pad_type} is not known to this executor")
    pads = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max(0, stride * math.ceil(size / stride) - size + span - stride)
        less, more = total // 2, total - total // 2
        pads.append((less, more) if kind == "same" else (more, less))
    return pads


def extend(x: Tensor, pads: Pads, *, value: float = 0.0) -> Tensor:
    """Pad the last axes of x."""
    flat = [size for pair in reversed(pads) for size in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x
