"""Balanced keys: the same scores, channels as large as the queries', and less lost to rounding."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qwen3_export.calibration.key_balance import balance_keys, sizes_of_keys_and_queries
from qwen3_export.graph import Graph
from qwen3_export.quantizers.transforms import Fold, Pair, fold
from qwen3_export.reference.model import KVCache, forward, logits

WINDOWS = [np.arange(100 + 50 * i, 180 + 50 * i) for i in range(4)]


class RoundedKeys(KVCache):
    """Keys in blocks of 32 channels, four bits each, as a runtime's quantized cache has them."""

    def extend(self, layer: int, k_TKH: torch.Tensor, v_TKH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = k_TKH.reshape(*k_TKH.shape[:-1], -1, 32)
        scale = blocks.abs().amax(-1, keepdim=True) / 7
        return super().extend(layer, (torch.round(blocks / scale) * scale).reshape(k_TKH.shape), v_TKH)


@pytest.fixture
def uneven(model_graph: Callable[[str], Graph]) -> Graph:
    """A model some of whose keys' channels are ten times the others, and its queries' the smaller for that."""
    graph, random = model_graph("tied"), np.random.default_rng(0)
    pairs = graph.config.head_dim // 2
    return fold(
        graph,
        {
            Fold(Pair.K_NORM, layer): np.where(random.random(pairs) < 0.2, 0.1, 1).astype(np.float32)
            for layer in range(graph.config.num_hidden_layers)
        },
    )


def lost(graph: Graph, exact: list[torch.Tensor]) -> float:
    tokens = [torch.from_numpy(window_T) for window_T in WINDOWS]
    found = forward(graph, tokens, caches=[RoundedKeys() for _ in tokens])
    return sum(float((ours - theirs).square().sum()) for ours, theirs in zip(found, exact, strict=True))


def test_the_function_stays_and_rounded_keys_lose_less(uneven: Graph) -> None:
    scales = balance_keys(uneven, WINDOWS)
    assert set(scales) == {Fold(Pair.K_NORM, layer) for layer in range(uneven.config.num_hidden_layers)}
    balanced = fold(uneven, scales)
    tokens = torch.arange(3000, 3040)
    torch.testing.assert_close(logits(balanced, tokens), logits(uneven, tokens), rtol=1e-4, atol=1e-4)
    exact = forward(uneven, [torch.from_numpy(window_T) for window_T in WINDOWS])
    assert lost(balanced, exact) < 0.5 * lost(uneven, exact)


def test_keys_get_the_queries_sizes(uneven: Graph) -> None:
    scales = balance_keys(uneven, WINDOWS)
    for k_H, q_H in sizes_of_keys_and_queries(fold(uneven, scales), WINDOWS).values():
        ratio = k_H / q_H
        np.testing.assert_allclose(ratio, ratio.mean(), rtol=1e-3)
    for scale in scales.values():
        assert np.log(scale).mean() == pytest.approx(0, abs=1e-5)
