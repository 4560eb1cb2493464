"""Normalizations. Source of the formulas: coremltools' ``defs/iOS15/normalization.py``."""

# N batch  C channels  then the spatial axes

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn import functional

from qwen3_export.targets.coreml.mil.calls import Ints

__all__ = ["OPS"]


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    normal = (x - mean.reshape(shape)) / (variance.reshape(shape) + epsilon).sqrt()
    return _scaled(normal, gamma, beta, shape)


def _instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    spatial = list(range(2, x.dim()))
    return _scaled(_normal(x, spatial, epsilon), gamma, beta, (1, -1, *[1] * len(spatial)))


def _layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    over = sorted(axis % x.dim() for axis in (range(x.dim()) if axes is None else axes))
    shape = tuple(size if axis in over else 1 for axis, size in enumerate(x.shape))
    return _scaled(_normal(x, over, epsilon), gamma, beta, shape)


def _l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Normalize over the last three axes together."""
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


def _local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    return functional.local_response_norm(x, size, alpha, beta, k)


def _normal(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + epsilon).sqrt()


def _scaled(x: Tensor, gamma: Tensor | None, beta: Tensor | None, shape: tuple[int, ...]) -> Tensor:
    scaled = x if gamma is None else x * gamma.reshape(shape)
    return scaled if beta is None else scaled + beta.reshape(shape)


OPS: Mapping[str, Callable[..., Tensor]] = {
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "l2_norm": _l2_norm,
    "layer_norm": _layer_norm,
    "local_response_norm": _local_response_norm,
}
