"""Models with one thing wrong: each must move the logits far beyond the bound of the parity tests.

A parity test that no mistake could fail shows nothing; these are the mistakes that exporters have made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tokens import random_tokens
from torch import Tensor

from qwen3_export.graph import Graph, Kind, RenamedWeight, Role
from qwen3_export.reference import layer as reference_layer
from qwen3_export.reference.model import logits
from qwen3_export.rope import Rotation

VISIBLE = 1e-3  # ten times the bound of the parity tests

Mutate = Callable[[Graph, pytest.MonkeyPatch], Graph]


def with_config(**changes: Any) -> Mutate:
    return lambda graph, _: replace(graph, config=replace(graph.config, **changes))


def swap_qk_norms(graph: Graph, _: pytest.MonkeyPatch) -> Graph:
    other = {Kind.Q_NORM: Kind.K_NORM, Kind.K_NORM: Kind.Q_NORM}
    swapped = {
        weight.name: RenamedWeight(source=graph[Role(other[weight.role.kind], weight.role.layer)], new_role=weight.role)
        for weight in graph
        if weight.role.kind in other
    }
    return graph.with_weights({**graph.weights, **swapped})


def interleave_rope(graph: Graph, patch: pytest.MonkeyPatch) -> Graph:
    def rotate_neighbours(x_TNH: Tensor, turn: Rotation) -> Tensor:
        cos, sin = turn.cos[:, None], turn.sin[:, None]
        even, odd = x_TNH[..., 0::2], x_TNH[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)

    patch.setattr(reference_layer, "rotate", rotate_neighbours)
    return graph


def omit_k_norm(graph: Graph, patch: pytest.MonkeyPatch) -> Graph:
    norms = [torch.from_numpy(weight.read()) for weight in graph if weight.role.kind is Kind.K_NORM]
    rms_norm = reference_layer.rms_norm

    def all_but_k_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
        return x if any(torch.equal(weight, norm) for norm in norms) else rms_norm(x, weight, eps=eps)

    patch.setattr(reference_layer, "rms_norm", all_but_k_norm)
    return graph


def share_keys_round_robin(graph: Graph, patch: pytest.MonkeyPatch) -> Graph:
    """Query head n reads key head n mod K instead of n // G."""
    attend = reference_layer.attend

    def tiled(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        repeats = (1, q_TNH.shape[1] // k_SKH.shape[1], 1)
        return attend(q_TNH, k_SKH.repeat(repeats), v_SKH.repeat(repeats))

    patch.setattr("qwen3_export.reference.model.attend", tiled)
    return graph


MUTANTS: dict[str, tuple[str, Mutate]] = {
    "eps": ("tied", with_config(rms_norm_eps=1e-5)),
    "rope_theta": ("tied", with_config(rope_theta=10_000.0)),
    "swapped q_norm and k_norm": ("tied", swap_qk_norms),
    "interleaved RoPE": ("tied", interleave_rope),
    "missing k_norm": ("tied", omit_k_norm),
    "key heads round robin": ("tied", share_keys_round_robin),
    "missing YaRN": ("yarn", with_config(rope_scaling=None)),
    "shares renormalised": ("moe_shares_as_they_are", with_config(norm_topk_prob=True)),
    "shares not renormalised": ("moe", with_config(norm_topk_prob=False)),
    "an expert too few": ("moe", with_config(num_experts_per_tok=2)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutant_is_visible(mutant: str, model_graph: Callable[[str], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    name, mutate = MUTANTS[mutant]
    assert difference(model_graph(name), mutate, monkeypatch) > VISIBLE


@pytest.mark.parametrize("mutant", [mutant for mutant, (name, _) in MUTANTS.items() if name == "tied"])
def test_mutant_is_visible_in_trained_weights(mutant: str, demo_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    assert difference(demo_graph, MUTANTS[mutant][1], monkeypatch) > VISIBLE


def difference(graph: Graph, mutate: Mutate, patch: pytest.MonkeyPatch) -> float:
    tokens_T = random_tokens(48)
    right = logits(graph, tokens_T)
    return (logits(mutate(graph, patch), tokens_T) - right).abs().max().item()
