"""Take slices, and write into them.

Source: coremltools' ``defs/iOS15/tensor_transformation.py`` (numpy's rules, with masks) and
``defs/iOS18/tensor_transformation.py`` (``slice_update``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import Ints

__all__ = ["OPS", "write_slice"]


def _slice_by_index(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints | None = None,
    end_mask: Ints | None = None,
    squeeze_mask: Ints | None = None,
) -> Tensor:
    squeezed = _flags(squeeze_mask, x.dim())
    for axis, places in enumerate(_ranges(x, begin, end, stride, begin_mask, end_mask, squeezed)):
        x = _take(x, axis, places)
    return x.squeeze(tuple(axis for axis, gone in enumerate(squeezed) if gone)) if any(squeezed) else x


def _slice_by_size(x: Tensor, begin: Ints, size: Ints) -> Tensor:
    """A size of -1 takes all that remains."""
    for axis, (first, count) in enumerate(zip(begin, size, strict=True)):
        start = first % x.shape[axis] if first < 0 else first
        x = x.narrow(axis, start, x.shape[axis] - start if count == -1 else count)
    return x


def write_slice(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints | None = None,
    end_mask: Ints | None = None,
    squeeze_mask: Ints | None = None,
) -> Tensor:
    """``slice_update`` in place. An update whose shape differs from its slice is refused, never broadcast."""
    squeezed = _flags(squeeze_mask, x.dim())
    ranges = _ranges(x, begin, end, stride, begin_mask, end_mask, squeezed)
    shape = [len(places) for places, gone in zip(ranges, squeezed, strict=True) if not gone]
    if list(update.shape) != shape:
        raise ValueError(f"an update of shape {list(update.shape)} does not fill a slice of shape {shape}")
    values = update.reshape([len(places) for places in ranges])
    if all(places.step > 0 for places in ranges):
        x[tuple(slice(places.start, places.stop, places.step) for places in ranges)] = values
    else:
        x[torch.meshgrid(*(torch.tensor(list(places)) for places in ranges), indexing="ij")] = values
    return x


def _slice_update(
    x: Tensor,
    update: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None = None,
    begin_mask: Ints | None = None,
    end_mask: Ints | None = None,
    squeeze_mask: Ints | None = None,
) -> Tensor:
    return write_slice(x.clone(), update, begin, end, stride, begin_mask, end_mask, squeeze_mask)


def _ranges(
    x: Tensor,
    begin: Ints,
    end: Ints,
    stride: Ints | None,
    begin_mask: Ints | None,
    end_mask: Ints | None,
    squeezed: list[bool],
) -> list[range]:
    """The indices that a slice has along each axis, by numpy's rules. A squeezed axis has the one at ``begin``."""
    from_start, to_end = _flags(begin_mask, x.dim()), _flags(end_mask, x.dim())
    steps = stride or (1,) * x.dim()
    ranges = []
    for axis, size in enumerate(x.shape):
        first = None if from_start[axis] else begin[axis]
        if squeezed[axis]:
            place = (first or 0) + (size if (first or 0) < 0 else 0)
            if not 0 <= place < size:
                raise ValueError(f"index {first} is outside an axis of {size} elements")
            ranges.append(range(place, place + 1))
        else:
            ranges.append(range(*slice(first, None if to_end[axis] else end[axis], steps[axis]).indices(size)))
    return ranges


def _take(x: Tensor, axis: int, places: range) -> Tensor:
    """A view if the step is 1; else a copy."""
    if len(places) == x.shape[axis] and places.step == 1:
        return x
    if places.step == 1:
        return x.narrow(axis, places.start if places else 0, len(places))
    return x.index_select(axis, torch.tensor(list(places), dtype=torch.int64))


def _flags(mask: Ints | None, rank: int) -> list[bool]:
    return [False] * rank if mask is None else [bool(flag) for flag in mask]


OPS: Mapping[str, Callable[..., Tensor]] = {
    "slice_by_index": _slice_by_index,
    "slice_by_size": _slice_by_size,
    "slice_update": _slice_update,
}
