"""Mistakes of exporters, made in the reference: each is found at its place, and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tokens import random_tokens
from torch import Tensor
from torch.nn import functional

from qwen3_export.graph import Graph, Kind, RenamedWeight, Role
from qwen3_export.parity.localise import localise
from qwen3_export.reference import layer as reference_layer
from qwen3_export.reference import model as reference
from qwen3_export.reference.model import Site, forward
from qwen3_export.rope import Rotation

Mutate = Callable[[Graph, pytest.MonkeyPatch], Graph]


def with_config(**changes: Any) -> Mutate:
    return lambda graph, _: replace(graph, config=replace(graph.config, **changes))


def swapped(first: Kind, second: Kind) -> Mutate:
    """Two weights of layer 1 in each other's place."""

    def mutate(graph: Graph, _: pytest.MonkeyPatch) -> Graph:
        roles = (Role(first, 1), Role(second, 1))
        names = {graph[role].name: other for role, other in zip(roles, reversed(roles), strict=True)}
        moved = {
            name: RenamedWeight(source=graph[other], new_role=graph.weights[name].role) for name, other in names.items()
        }
        return graph.with_weights({**graph.weights, **moved})

    return mutate


def patched(target: Any, name: str, make: Callable[[Any], Any]) -> Mutate:
    """One of the reference's functions, made otherwise."""

    def mutate(graph: Graph, patch: pytest.MonkeyPatch) -> Graph:
        patch.setattr(target, name, make(getattr(target, name)))
        return graph

    return mutate


def without_norm(kind: Kind) -> Mutate:
    def mutate(graph: Graph, patch: pytest.MonkeyPatch) -> Graph:
        norms = [torch.from_numpy(weight.read()) for weight in graph if weight.role.kind is kind]
        real = reference_layer.rms_norm

        def norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
            return x if any(torch.equal(weight, known) for known in norms) else real(x, weight, eps=eps)

        for module in (reference_layer, reference):
            patch.setattr(module, "rms_norm", norm)
        return graph

    return mutate


def neighbours(x_TNH: Tensor, turn: Rotation) -> Tensor:
    cos, sin = turn.cos[:, None], turn.sin[:, None]
    even, odd = x_TNH[..., 0::2], x_TNH[..., 1::2]
    return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)


def see_all(_real: Any) -> Any:
    def attend(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        times = q_TNH.shape[1] // k_SKH.shape[1]
        q, k, v = (x.transpose(0, 1) for x in (q_TNH, *(x.repeat_interleave(times, 1) for x in (k_SKH, v_SKH))))
        return functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).flatten(1)

    return attend


def in_turn(real: Any) -> Any:
    def attend(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
        repeats = (1, q_TNH.shape[1] // k_SKH.shape[1], 1)
        return real(q_TNH, k_SKH.repeat(repeats), v_SKH.repeat(repeats))

    return attend


def scaled(real: Any) -> Any:
    return lambda q_TNH, k_SKH, v_SKH: real(q_TNH * 8.0, k_SKH, v_SKH)  # 64 ** 0.5


def half_embedding(real: Any) -> Any:
    return lambda graph, tokens_T: real(graph, tokens_T) * 0.5


def gelu(_real: Any) -> Any:
    return lambda weights, h_TD: functional.gelu(weights.gate_proj(h_TD)) * weights.up_proj(h_TD)


# What was done, to which tiny model; where it shows first, and what is said of it.
MISTAKES: list[tuple[str, Mutate, tuple[int | None, str], str]] = [
    ("tied", with_config(rms_norm_eps=1e-5), (0, "attention"), "eps is 1e-05"),
    ("tied", swapped(Kind.Q_NORM, Kind.K_NORM), (1, "q_rope"), "q_norm and k_norm are swapped"),
    ("tied", without_norm(Kind.Q_NORM), (0, "q_rope"), "q_norm is missing"),
    ("tied", without_norm(Kind.K_NORM), (0, "k_rope"), "k_norm is missing"),
    ("tied", with_config(rope_theta=10_000.0), (0, "q_rope"), "RoPE's base is 10,000"),
    ("yarn", with_config(rope_scaling=None), (0, "q_rope"), "YaRN is missing"),
    ("tied", patched(reference_layer, "rotate", lambda _: neighbours), (0, "q_rope"), "RoPE pairs neighbours"),
    ("tied", patched(reference_layer, "rotate", lambda _: lambda x, _turn: x), (0, "q_rope"), "RoPE is missing"),
    ("tied", patched(reference, "attend", see_all), (0, "attention"), "the causal mask is missing"),
    ("tied", patched(reference, "attend", in_turn), (0, "attention"), "query heads share key heads in turn"),
    ("tied", patched(reference, "attend", scaled), (0, "attention"), "scores are not scaled"),
    ("tied", swapped(Kind.GATE_PROJ, Kind.UP_PROJ), (1, "mlp"), "gate_proj and up_proj are swapped"),
    ("tied", patched(reference, "gated", gelu), (0, "mlp"), "the activation is gelu"),
    ("tied", without_norm(Kind.POST_ATTENTION_LAYERNORM), (0, "mlp"), "post_attention_layernorm is missing"),
    ("tied", without_norm(Kind.NORM), (None, "final"), "the final norm is missing"),
    ("tied", patched(reference, "embed", half_embedding), (0, "input"), "it is 0.5 times what it should be"),
    ("moe", with_config(norm_topk_prob=False), (0, "mlp"), "the experts' shares are not brought to one"),
    ("moe", with_config(num_experts_per_tok=2), (0, "mlp"), "2 experts a token are mixed"),
]


def states(graph: Graph, tokens: Sequence[int]) -> dict[Site, np.ndarray]:
    found: dict[Site, np.ndarray] = {}
    forward(graph, [torch.tensor(tokens)], observe=lambda site, _i, state: found.update({site: state.numpy().copy()}))
    return found


@pytest.mark.parametrize("index", range(len(MISTAKES)), ids=[told for *_, told in MISTAKES])
def test_a_mistake_is_found_and_named(
    index: int, model_graph: Callable[[str], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, mutate, where, told = MISTAKES[index]
    graph, tokens = model_graph(variant), random_tokens(24).tolist()
    with monkeypatch.context() as patch:
        found = states(mutate(graph, patch), tokens)
    divergence = localise(graph, tokens, lambda _tokens: found)
    assert divergence is not None
    assert (divergence.layer, divergence.site) == where
    assert divergence.cause is not None
    assert divergence.cause.startswith(told)


@pytest.mark.parametrize(("hidden", "shown"), [("attention", "after_attention"), ("mlp", "output")])
def test_a_place_that_is_not_shown_is_seen_in_the_next(
    hidden: str, shown: str, model_graph: Callable[[str], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, tokens = model_graph("tied"), random_tokens(24).tolist()
    mistake = patched(reference, "attend", see_all) if hidden == "attention" else patched(reference, "gated", gelu)
    with monkeypatch.context() as patch:
        found = states(mistake(graph, patch), tokens)
    partly = {site: state for site, state in found.items() if site.place.value != hidden}
    divergence = localise(graph, tokens, lambda _tokens: partly)
    assert divergence is not None
    assert (divergence.layer, divergence.site) == (0, shown)
    assert divergence.cause == ("the causal mask is missing" if hidden == "attention" else "the activation is gelu")


def test_what_no_known_mistake_explains_is_placed_and_not_explained(model_graph: Callable[[str], Graph]) -> None:
    graph, tokens = model_graph("tied"), random_tokens(24).tolist()
    found = states(graph, tokens)
    site = next(site for site in found if site.layer == 1 and site.place.value == "k_rope")
    found[site] = found[site] + np.random.default_rng(0).standard_normal(found[site].shape).astype(np.float32)
    divergence = localise(graph, tokens, lambda _tokens: found, first_layer=5)
    assert divergence is not None
    assert (divergence.layer, divergence.site, divergence.cause) == (6, "k_rope", None)


def test_equal_states_part_nowhere(model_graph: Callable[[str], Graph]) -> None:
    graph, tokens = model_graph("tied"), random_tokens(24).tolist()
    found = states(graph, tokens)
    assert localise(graph, tokens, lambda _tokens: found) is None
