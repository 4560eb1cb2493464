"""Greedy tokens of a runtime against the reference."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from qwen3_export.graph import Graph
from qwen3_export.reference.model import logits

__all__ = ["NEAR_TIE", "assert_greedy"]

# Two tokens whose logits are nearer than int8 activations move them are both right.
NEAR_TIE = 0.4


def assert_greedy(graph: Graph, given: Sequence[int], made: Sequence[int], *, tolerance: float) -> None:
    """Every token is the reference's best after what came before, or as good as that."""
    assert made
    rows = logits(graph, torch.tensor([*given, *made[:-1]]))[len(given) - 1 :]
    for row, token in zip(rows, made, strict=True):
        assert float(row.max() - row[token]) <= tolerance
