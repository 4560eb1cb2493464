"""Divergences over positions: what falls into which range, and that a comparison gathers it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from tokens import random_tokens

from qwen3_export.graph import Graph
from qwen3_export.parity import compare as compare_module
from qwen3_export.parity.compare import compare_shipped
from qwen3_export.parity.curves import curve
from qwen3_export.reference.model import logits


def test_ranges_widen_and_cover_every_position_once() -> None:
    positions = np.arange(1000)
    points = curve(positions, positions.astype(float))
    assert [(point.first, point.last) for point in points[:8]] == [
        (0, 0), (1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 11), (12, 15),
    ]  # fmt: skip
    assert all(point.first == before.last + 1 for before, point in pairwise(points))
    assert sum(point.count for point in points) == 1000
    assert points[6].mean_kld == np.mean([8, 9, 10, 11])
    assert points[6].max_kld == 11
    assert len(curve(np.arange(1 << 15), np.ones(1 << 15))) < 32


def test_positions_of_several_texts_share_ranges() -> None:
    points = curve(np.array([0, 1, 2, 0, 1, 2]), np.array([1.0, 2, 3, 3, 4, 5]))
    assert [(point.count, point.mean_kld) for point in points] == [(2, 2.0), (2, 3.0), (2, 4.0)]
    assert curve(np.array([], dtype=np.int64), np.array([])) == ()


@pytest.mark.parametrize("positions_held", [5, 1000])
def test_what_goes_wrong_late_shows_late(
    model_graph: Callable[[str], Graph], positions_held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime that is off from position 8 on, however many positions are held at once."""
    graph = model_graph("tied")
    monkeypatch.setattr(compare_module, "LOGITS_HELD", positions_held * graph.config.vocab_size)

    def run(tokens: Sequence[int]) -> np.ndarray:
        found = logits(graph, torch.tensor(tokens)).numpy().copy()
        found[8:, 0] += 1.0
        return found

    numbers = compare_shipped(graph, graph, [random_tokens(n, seed=n).tolist() for n in (12, 7)], run=run)
    assert numbers.curves.keys() == {"shipped", "quantization", "end_to_end"}
    by_range = {point.first: point for point in numbers.curves["end_to_end"]}
    assert [by_range[first].count for first in (0, 4, 6, 8)] == [2, 4, 3, 4]
    assert by_range[6].max_kld < 1e-10
    assert by_range[8].mean_kld > 1e-4
    assert max(point.max_kld for point in numbers.curves["quantization"]) == 0.0


def test_without_a_runtime_only_the_stored_values_have_a_curve(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    assert compare_shipped(graph, graph, [[1, 2, 3]], run=None).curves.keys() == {"quantization"}
