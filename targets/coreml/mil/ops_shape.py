"""Operations that move values without changing them: reshaping, reordering, joining and splitting.

Source: coremltools' ``defs/iOS15/tensor_transformation.py`` and ``tensor_operation.py``, and their successors for iOS
16 and 17.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.targets.coreml.mil.calls import Ints, Tensors

__all__ = ["OPS"]

Operator = Callable[..., Tensor | Tensors]


def _transpose(x: Tensor, perm: Ints) -> Tensor:
    return x.permute(perm)


def _reshape(x: Tensor, shape: Ints) -> Tensor:
    """-1 takes the remaining elements; 0 takes the size of x at the same position, counted from the right (iOS 17)."""
    from_right = [*[1] * len(shape), *x.shape][-len(shape) :] if shape else []
    return x.reshape([own if size == 0 else size for size, own in zip(shape, from_right, strict=True)])


def _reshape_like(x: Tensor, ref_tensors: Tensors, begins: Ints, ends: Ints, end_masks: Ints) -> Tensor:
    shape: list[int] = []
    for reference, begin, end, to_end in zip(ref_tensors, begins, ends, end_masks, strict=True):
        shape += reference.shape[begin:] if to_end else reference.shape[begin:end]
    return x.reshape(shape)


def _expand_dims(x: Tensor, axes: Ints) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    """Axes whose size is not 1 stay, as in torch."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _flatten2d(x: Tensor, axis: int = 1) -> Tensor:
    at = axis if axis >= 0 else axis + x.dim()
    return x.reshape(math.prod(x.shape[:at]), math.prod(x.shape[at:]))


def _concat(values: Tensors, axis: int, interleave: bool = False) -> Tensor:
    """A scalar counts as a vector of one element: converted programs build shapes from scalars."""
    if not interleave:
        return torch.cat([value.reshape(1) if value.dim() == 0 else value for value in values], axis)
    at = axis % values[0].dim()
    return torch.stack(values, at + 1).flatten(at, at + 1)


def _stack(values: Tensors, axis: int) -> Tensor:
    return torch.stack(values, axis)


def _split(x: Tensor, axis: int, num_splits: int | None = None, split_sizes: Ints | None = None) -> Tensors:
    if split_sizes is None:
        size, left = divmod(x.shape[axis], num_splits or 1)
        if left:
            raise ValueError(f"{x.shape[axis]} elements do not split into {num_splits} equal parts")
        split_sizes = (size,) * (num_splits or 1)
    return torch.split_with_sizes(x, list(split_sizes), axis)


def _tile(x: Tensor, reps: Ints) -> Tensor:
    return x.tile(reps)


def _pad(x: Tensor, pad: Ints, mode: str = "constant", constant_val: Tensor | None = None) -> Tensor:
    """``pad`` has two numbers for each of the last axes, outermost axis first."""
    pairs = [(0, 0)] * (x.dim() - len(pad) // 2) + list(zip(pad[0::2], pad[1::2], strict=True))
    if mode == "constant":
        value = 0 if constant_val is None else constant_val.item()
        return functional.pad(x, [size for pair in reversed(pairs) for size in pair], value=value)
    for axis, (before, after) in enumerate(pairs):
        x = x.index_select(axis, _mirror(x.shape[axis], before, after, mode))
    return x


def _mirror(size: int, before: int, after: int, mode: str) -> Tensor:
    """The index of the element at each position of an axis that is extended beyond its ends."""
    places = torch.arange(-before, size + after)
    if mode == "replicate":
        return places.clamp(0, size - 1)
    if mode != "reflect":
        raise ValueError(f"its mode {mode} is not known to this executor")
    if max(before, after) >= size:
        raise ValueError(f"an axis of {size} elements cannot be reflected over {max(before, after)}")
    return (size - 1) - ((size - 1) - places.abs()).abs()


def _reverse(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.flip(list(range(x.dim())) if axes is None else axes)


def _reverse_sequence(x: Tensor, lengths: Tensor, seq_axis: int = 0, batch_axis: int = 0) -> Tensor:
    """Reverse the first ``lengths`` elements of each batch and keep the rest."""
    size, rank = x.shape[seq_axis], x.dim()
    counts = lengths.long().reshape([-1 if axis == batch_axis % rank else 1 for axis in range(rank)])
    places = torch.arange(size).reshape([-1 if axis == seq_axis % rank else 1 for axis in range(rank)])
    return x.gather(seq_axis, torch.where(places < counts, counts - 1 - places, places).expand(x.shape))


def _sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    at = axis % x.dim()
    return x.unfold(at, size, stride).movedim(-1, at + 1)


def _pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    return functional.pixel_shuffle(x, upscale_factor)


def _pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    return functional.pixel_unshuffle(x, downscale_factor)


def _depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """Unlike ``pixel_shuffle``, the position in a block is the outer part of the channels (TensorFlow's order)."""
    n, c, h, w = x.shape
    blocks = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, c // block_size**2, h * block_size, w * block_size)


def _space_to_depth(x: Tensor, block_size: int) -> Tensor:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block_size**2, h // block_size, w // block_size)


def _space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    x = functional.pad(x, [*paddings[2:], *paddings[:2]])
    n, c, h, w = x.shape
    high, wide = block_shape
    blocks = x.reshape(n, c, h // high, high, w // wide, wide)
    return blocks.permute(3, 5, 0, 1, 2, 4).reshape(n * high * wide, c, h // high, w // wide)


def _batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    n, c, h, w = x.shape
    high, wide = block_shape
    blocks = x.reshape(high, wide, n // (high * wide), c, h, w).permute(2, 3, 4, 0, 5, 1)
    whole = blocks.reshape(n // (high * wide), c, h * high, w * wide)
    return whole[:, :, crops[0] : h * high - crops[1], crops[2] : w * wide - crops[3]]


def _crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    h, w = x.shape[-2:]
    return x[..., crop_height[0] : h - crop_height[1], crop_width[0] : w - crop_width[1]]


OPS: Mapping[str, Operator] = {
    "batch_to_space": _batch_to_space,
    "concat": _concat,
    "crop": _crop,
    "depth_to_space": _depth_to_space,
    "expand_dims": _expand_dims,
    "flatten2d": _flatten2d,
    "pad": _pad,
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
    "reshape": _reshape,
    "reshape_like": _reshape_like,
    "reverse": _reverse,
    "reverse_sequence": _reverse_sequence,
    "sliding_windows": _sliding_windows,
    "space_to_batch": _space_to_batch,
    "space_to_depth": _space_to_depth,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "tile": _tile,
    "transpose": _transpose,
}
