"""Decode compressed constants to dense ones, one function for each kind of ``constexpr``.

Sources: coremltools' ``defs/iOS16/constexpr_ops.py`` and ``defs/iOS18/compression.py``. iOS 18 changed two operators
without renaming them: ``constexpr_lut_to_dense`` (before: flat packed indices and a shape; now: indices in their own
shape) and ``constexpr_sparse_to_dense`` (likewise). Their parameters tell the versions apart. Products are fp32; the
mode decides whether they are then rounded to the declared fp16 (``arithmetic.py``), as for any other operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.quantizers.packing.bits import unpack_bits

__all__ = ["CONSTEXPR"]

Array = NDArray[Any]
Inputs = Mapping[str, Any]  # by parameter name: arrays, strings, or tensors from other constexprs


def _blockwise_shift_scale(inputs: Inputs) -> Tensor:
    return _shift_scale(inputs["data"], inputs["scale"], inputs.get("offset"))


def _shift_scale(data: Any, scale: Any, offset: Any) -> Tensor:
    """``scale * (data - offset)``; one scale and one offset serve a block of data along every axis."""
    dense, scale = _float(data), _float(scale)
    interleaved = [size for pair in zip(scale.shape, _blocks(dense, scale), strict=True) for size in pair]
    blocks = dense.view(interleaved)
    spread = [size for count in scale.shape for size in (count, 1)]
    if offset is not None:
        blocks.sub_(_float(offset).view(spread))
    blocks.mul_(scale.view(spread))
    return dense


def _affine_dequantize(inputs: Inputs) -> Tensor:
    data = _float(inputs["quantized_data"])
    shape = [1] * data.dim()
    shape[int(inputs["axis"])] = -1
    scale, zero_point = (_float(inputs[key]) for key in ("scale", "zero_point"))
    spread = [value if value.dim() == 0 else value.view(shape) for value in (scale, zero_point)]
    return data.sub_(spread[1]).mul_(spread[0])


def _lut_to_dense(inputs: Inputs) -> Tensor:
    if "shape" in inputs:  # iOS 16: one table, packed indices
        shape, lut = [int(size) for size in inputs["shape"]], inputs["lut"]
        indices = _stream(inputs["indices"], int(math.log2(lut.size)), math.prod(shape))
        return _float(lut)[torch.from_numpy(indices.reshape(shape)).int()]
    return _look_up(inputs["indices"], inputs["lut"], inputs.get("vector_axis"))


def _look_up(indices: Any, lut: Any, vector_axis: Any) -> Tensor:
    """Look indices up in tables.

    The tables fill all axes of ``lut`` but the last two, one table for each block of indices. An entry may be a vector.
    """
    table, codes = _float(lut), _tensor(indices)
    entries, size = table.shape[-2:]
    counts = table.shape[:-2]
    flat = table.reshape(-1, size)
    number = torch.arange(math.prod(counts)).view(counts)
    for axis, block in enumerate(_blocks(codes, number)):
        number = number.repeat_interleave(block, axis) if axis and block > 1 else number
    vectors = torch.empty(*codes.shape, size)
    block = codes.shape[0] // counts[0]
    for row in range(counts[0]):  # one row of tables at a time, because indices take 8 bytes an element
        rows = slice(row * block, (row + 1) * block)
        vectors[rows] = flat[number[row] * entries + codes[rows].long()]
    return vectors[..., 0] if size == 1 else _along(vectors, int(vector_axis) % codes.dim())


def _along(vectors: Tensor, axis: int) -> Tensor:
    """Lay the vectors of the last axis out along another axis, which grows by their size."""
    return vectors.movedim(-1, axis + 1).flatten(axis, axis + 1)


def _sparse_to_dense(inputs: Inputs) -> Tensor:
    if "shape" in inputs:  # iOS 16: a packed mask
        shape = [int(size) for size in inputs["shape"]]
        mask = _stream(inputs["mask"], 1, math.prod(shape)).reshape(shape)
        return _spread(inputs["nonzero_data"], mask)
    return _spread(inputs["nonzero_data"], inputs["mask"])


def _spread(nonzero: Any, mask: Any) -> Tensor:
    where, values = _tensor(mask).bool(), _tensor(nonzero)
    dense = torch.zeros(where.shape, dtype=values.dtype)
    dense[where] = values.reshape(-1)
    return dense


def _lut_to_sparse(inputs: Inputs) -> tuple[Tensor, Tensor]:
    mask, axis = _tensor(inputs["indices_mask"]), inputs.get("vector_axis")
    dense = _look_up(_spread(inputs["indices_nonzero_data"], mask), inputs["lut"], axis)
    size = inputs["lut"].shape[-1]
    grown = mask if axis is None else mask.repeat_interleave(size, int(axis))
    return grown, dense[grown.bool()]


def _sparse_shift_scale(inputs: Inputs) -> tuple[Tensor, Tensor]:
    mask = _tensor(inputs["data_mask"])
    dense = _shift_scale(_spread(inputs["nonzero_data"], mask), inputs["scale"], inputs.get("offset"))
    return mask, dense[mask.bool()]


def _cast(inputs: Inputs) -> Tensor:
    return _float(inputs["source_val"])


def _blocks(dense: Tensor, parameters: Tensor) -> list[int]:
    """How many elements along each axis share one parameter."""
    return [size // count for size, count in zip(dense.shape, parameters.shape, strict=True)]


def _stream(packed: Array, num_bits: int, count: int) -> Array:
    return unpack_bits(np.pad(packed, (0, -packed.size % num_bits)), num_bits)[:count]


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value
    array = np.asarray(value)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _float(value: Any) -> Tensor:
    """Convert to a new fp32 tensor that may be overwritten."""
    return _tensor(value).to(torch.float32, copy=True)


CONSTEXPR: Mapping[str, Callable[[Inputs], Tensor | tuple[Tensor, Tensor]]] = {
    "constexpr_affine_dequantize": _affine_dequantize,
    "constexpr_blockwise_shift_scale": _blockwise_shift_scale,
    "constexpr_cast": _cast,
    "constexpr_lut_to_dense": _lut_to_dense,
    "constexpr_lut_to_sparse": _lut_to_sparse,
    "constexpr_sparse_blockwise_shift_scale": _sparse_shift_scale,
    "constexpr_sparse_to_dense": _sparse_to_dense,
}
