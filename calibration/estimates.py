"""What forecasts have in common: how fast this machine multiplies, and how many tokens reach a weight."""

from __future__ import annotations

import math
import time

import torch

from qwen3_export.graph import Graph, Weight

__all__ = ["BASE_BYTES", "multiplications_a_second", "seen_tokens"]

# Of Python, torch, numba and the tokenizer.
BASE_BYTES = 450 << 20


def seen_tokens(weight: Weight, graph: Graph, num_tokens: int) -> int:
    """Tokens that reach a weight; for an expert, an equal share."""
    if weight.role.expert is None:
        return num_tokens
    return math.ceil(num_tokens * graph.config.num_experts_per_tok / graph.config.num_experts)


def multiplications_a_second(hidden_size: int) -> float:
    """Multiplications a second in products of windows of 512 tokens with a square weight."""
    x_TD, weight_DD = torch.ones(512, hidden_size), torch.ones(hidden_size, hidden_size)
    torch.mm(x_TD, weight_DD)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.05:
        torch.mm(x_TD, weight_DD)
        count += 1
    return count * 512 * hidden_size**2 / (time.perf_counter() - started)
