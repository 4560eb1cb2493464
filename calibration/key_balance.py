"""Scales between q_norm and k_norm that let a quantized cache store keys better, exactly and at no cost.

A runtime that stores keys as Q8_0 or Q4_0 rounds all channels of a block under one scale. So all channels have errors
of the same size, which the largest channel decides, and each error is multiplied with the query's channel. With
QK-Norm, the sizes of keys and queries are those of k_norm and q_norm, of which training fixes only the product.
Dividing k_norm by s and multiplying q_norm with s changes no score, as long as s is equal within each pair that RoPE
rotates.

Let k and q be the root mean squares of a pair's channels after norm and RoPE. s = sqrt(k / q) makes them equal. That
minimizes  Σ (k/s)² · Σ (q·s)²,  which is the error of a score under noise that is the same for all channels (by Cauchy
and Schwarz).
"""

# T tokens  K heads  H head_dim

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.graph import Graph
from qwen3_export.quantizers.transforms import Fold, Pair
from qwen3_export.reference.model import forward
from qwen3_export.reference.probe import Place, Site

__all__ = ["BALANCE_TOKENS", "balance_keys", "sizes_of_keys_and_queries"]

BALANCE_TOKENS = 8192
"""About as many tokens are enough to measure the sizes of channels."""

Values = NDArray[np.float32]


def balance_keys(
    graph: Graph, windows: Sequence[NDArray[np.int64]], *, progress: Callable[[int, int], None] | None = None
) -> dict[Fold, Values]:
    """The scales of every layer, for ``transforms.fold``, with a geometric mean of 1."""
    step = max(1, sum(map(len, windows)) // BALANCE_TOKENS)
    sizes = sizes_of_keys_and_queries(graph, windows[::step], progress=progress)
    return {Fold(Pair.K_NORM, layer): _normed(np.sqrt(k_H / q_H)) for layer, (k_H, q_H) in sizes.items()}


def sizes_of_keys_and_queries(
    graph: Graph, windows: Sequence[NDArray[np.int64]], *, progress: Callable[[int, int], None] | None = None
) -> Mapping[int, tuple[Values, Values]]:
    """The root mean square of each rotated pair of channels, [H / 2], of each layer's keys and queries."""
    sums: dict[Site, Tensor] = {}

    def observe(site: Site, _sequence: int, x_TKH: Tensor) -> None:
        if site.place in (Place.K_ROPE, Place.Q_ROPE):
            sums[site] = sums.get(site, torch.zeros(x_TKH.shape[-1])) + x_TKH.square().mean((0, 1))

    forward(graph, [torch.from_numpy(window_T) for window_T in windows], observe=observe, progress=progress)
    sizes = {site: (squares_H / len(windows)).view(2, -1).mean(0).sqrt().numpy() for site, squares_H in sums.items()}
    layers = range(graph.config.num_hidden_layers)
    return {layer: (sizes[Site(Place.K_ROPE, layer)], sizes[Site(Place.Q_ROPE, layer)]) for layer in layers}


def _normed(scale: Values) -> Values:
    """The scale divided by its geometric mean; a channel that is always zero gets 1."""
    scale = np.where(np.isfinite(scale) & (scale > 0), scale, 1)
    return np.asarray(scale / np.exp(np.log(scale).mean()), np.float32)
