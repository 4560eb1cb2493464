"""Token sequences for tests that compare two computations of one model."""

from __future__ import annotations

from itertools import count

import torch
from models import KNOWN_TOKENS
from torch import Tensor

from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.reference.model import forward
from qwen3_export.reference.weights import read_tensor

__all__ = ["random_tokens", "routing_margin", "settled_tokens"]

# Rounding moves a router's probabilities by some 1e-7.
SAFE_MARGIN = 1e-5


def random_tokens(length: int, *, seed: int = 0) -> Tensor:
    """Tokens that the demo's tokenizer knows, [T] int64."""
    return torch.randint(0, KNOWN_TOKENS, (length,), generator=torch.Generator().manual_seed(seed))


def settled_tokens(graph: Graph, length: int) -> Tensor:
    """Random tokens for which no router is undecided between its last chosen expert and the next.

    Two exact computations of a mixture differ by rounding, and where two experts are that close they choose
    differently and part for good.  That is the model's doing, and no error of either.
    """
    sequences = (random_tokens(length, seed=seed) for seed in count())
    return next(tokens_T for tokens_T in sequences if routing_margin(graph, tokens_T) > SAFE_MARGIN)


def routing_margin(graph: Graph, tokens_T: Tensor) -> float:
    """The least lead in probability of a chosen expert over one not chosen; infinite for dense models."""
    margins = [float("inf")]
    active = graph.config.num_experts_per_tok

    def measure(role: Role, _sequence: int, h_TD: Tensor, _shares: Tensor | None) -> None:
        if role.kind is Kind.ROUTER and active < graph.config.num_experts:
            shares_TE = torch.softmax(h_TD @ read_tensor(graph[role]).T, dim=-1).sort(descending=True).values
            margins.append((shares_TE[:, active - 1] - shares_TE[:, active]).min().item())

    if graph.config.is_moe:
        forward(graph, [tokens_T], observe_inputs=measure)
    return min(margins)
