"""Gathering and scattering by indices.

Source: coremltools' ``defs/iOS15/scatter_gather.py`` and its successors. Up to iOS 16, negative indices count from the
end. From iOS 17 on they are out of bounds, and out of bounds a device's behaviour is undefined. Here such an index is
an error, whatever ``validate_indices`` says, because a checker must not invent values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import SpecVersion

__all__ = ["OPS"]

IOS_17 = 8
REDUCTIONS = {"mul": "prod", "div": "prod", "max": "amax", "min": "amin"}


def _gather(
    x: Tensor,
    indices: Tensor,
    version: SpecVersion,
    axis: int = 0,
    batch_dims: int = 0,
    validate_indices: bool = False,
) -> Tensor:
    """The shape is x's axes before ``axis``, then the indices' axes after the batch, then the rest of x's axes."""
    del validate_indices
    at = axis % x.dim()
    places = _places(indices, x.shape[at], version)
    shape = (*x.shape[:at], *indices.shape[batch_dims:], *x.shape[at + 1 :])
    if batch_dims == 0:
        return x.index_select(at, places.reshape(-1)).reshape(shape)
    batch = math.prod(x.shape[:batch_dims])
    between, after = math.prod(x.shape[batch_dims:at]), math.prod(x.shape[at + 1 :])
    spread = places.reshape(batch, 1, -1, 1).expand(batch, between, -1, after)
    return x.reshape(batch, between, x.shape[at], after).gather(2, spread).reshape(shape)


def _gather_along_axis(
    x: Tensor, indices: Tensor, version: SpecVersion, axis: int = 0, validate_indices: bool = False
) -> Tensor:
    del validate_indices
    return x.gather(axis, _places(indices, x.shape[axis], version))


def _gather_nd(
    x: Tensor, indices: Tensor, version: SpecVersion, batch_dims: int = 0, validate_indices: bool = False
) -> Tensor:
    """The last axis of ``indices`` holds coordinates in the axes of x that follow the batch."""
    del validate_indices
    batch, depth = math.prod(x.shape[:batch_dims]), indices.shape[-1]
    sizes, rest = x.shape[batch_dims : batch_dims + depth], x.shape[batch_dims + depth :]
    rows = x.reshape(batch * math.prod(sizes), *rest)
    flat = _flat(indices, sizes, version).reshape(batch, -1)
    flat = flat + torch.arange(batch).unsqueeze(1) * math.prod(sizes)
    return rows[flat.reshape(-1)].reshape(*indices.shape[:-1], *rest)


def _scatter(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    version: SpecVersion,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    """Scatter whole slices along ``axis``."""
    del validate_indices
    at = axis % data.dim()
    places = _places(indices, data.shape[at], version)
    spread = places.reshape([-1 if i == at else 1 for i in range(data.dim())]).expand(updates.shape)
    return _combine(data, spread, updates, at, mode)


def _scatter_along_axis(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    version: SpecVersion,
    axis: int = 0,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    del validate_indices
    return _combine(data, _places(indices, data.shape[axis], version), updates, axis, mode)


def _scatter_nd(
    data: Tensor,
    indices: Tensor,
    updates: Tensor,
    version: SpecVersion,
    mode: str = "add",
    validate_indices: bool = False,
) -> Tensor:
    del validate_indices
    depth = indices.shape[-1]
    flat = _flat(indices, data.shape[:depth], version).reshape(-1)
    rest = math.prod(data.shape[depth:])
    rows, news = data.reshape(-1, rest), updates.reshape(-1, rest)
    return _combine(rows, flat.unsqueeze(1).expand(news.shape), news, 0, mode).reshape(data.shape)


def _combine(data: Tensor, places: Tensor, updates: Tensor, axis: int, mode: str) -> Tensor:
    """Write updates into a copy of the data, or combine them with it. All updates at one place count."""
    if mode == "update":
        return data.scatter(axis, places, updates)
    if mode in ("add", "sub"):
        return data.scatter_add(axis, places, updates if mode == "add" else -updates)
    if mode not in REDUCTIONS:
        raise ValueError(f"its mode {mode} is not known to this executor")
    if mode == "div":
        return data / torch.ones_like(data).scatter_reduce(axis, places, updates, "prod")
    return data.scatter_reduce(axis, places, updates, REDUCTIONS[mode])


def _flat(indices: Tensor, sizes: torch.Size, version: SpecVersion) -> Tensor:
    """Convert coordinates in several axes, [..., axes], to positions in the flattened axes."""
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64)
    for axis, size in enumerate(sizes):
        flat = flat * size + _places(indices[..., axis], size, version)
    return flat


def _places(indices: Tensor, size: int, version: SpecVersion) -> Tensor:
    places = indices.long()
    if version < IOS_17:
        places = torch.where(places < 0, places + size, places)
    if places.numel() and not (int(places.min()) >= 0 and int(places.max()) < size):
        raise ValueError(
            f"indices from {int(places.min())} to {int(places.max())} leave an axis of {size} elements, "
            f"which is undefined on a device"
        )
    return places


OPS: Mapping[str, Callable[..., Tensor]] = {
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "scatter": _scatter,
    "scatter_along_axis": _scatter_along_axis,
    "scatter_nd": _scatter_nd,
}
