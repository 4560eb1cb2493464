"""Compute a Qwen3 graph in fp32; every artifact is compared with the result.

The outer loop goes over layers, the inner loop over sequences. Half a layer's weights (or one expert's) are read, all
sequences pass through them, and they are dropped. So a model larger than memory can run: memory holds the hidden state
of each sequence, half a layer, and the attention scores of one block of queries. With caches, tokens continue where the
cache ends, so one prefill, chunks, and token by token are the same call.

The arithmetic of one layer is in ``layer``; this file has the order of its steps and the points where they can be
observed.

Shapes: T tokens, D hidden, I in, P positions (or tokens routed to one expert), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.reference.layer import KVCache, Routing, attend, gated, project_heads, rms_norm, route
from qwen3_export.reference.probe import Observe, ObserveInputs, Place, Probe, Site
from qwen3_export.reference.weights import (
    RoundActivations,
    embed,
    read_attention,
    read_gated,
    read_linear,
    read_tensor,
)

__all__ = ["KVCache", "Place", "Probe", "Site", "forward", "head_logits", "logits", "run_layer"]

# Rows of the output projection held at once: 64 MB in fp32 if hidden is 4096.
HEAD_ROWS_PER_BLOCK = 4096


@torch.inference_mode()
def forward(
    graph: Graph,
    sequences: Sequence[Tensor],
    *,
    caches: Sequence[KVCache] | None = None,
    observe: Observe | None = None,
    observe_inputs: ObserveInputs | None = None,
    round_activations: RoundActivations | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Tensor]:
    """Compute the hidden states of each sequence after the final norm, [T, D] each.

    ``sequences`` are token ids, [T] int64. With ``caches``, one per sequence, tokens continue the cached ones.
    ``observe`` and ``observe_inputs`` are called on the way (see ``probe``). ``round_activations(x, weight)`` replaces
    the input of each linear weight, row by row. ``progress`` is called with the number of finished layers and of all
    layers. Raises ValueError for an empty sequence or a token out of range.
    """
    if caches is not None and len(caches) != len(sequences):
        raise ValueError(f"{len(sequences)} sequences need as many caches, not {len(caches)}")
    probe = Probe(observe=observe, observe_inputs=observe_inputs, round_activations=round_activations)
    hidden = [embed(graph, tokens_T) for tokens_T in sequences]
    for i, x_TD in enumerate(hidden):
        probe.see(Site(Place.INPUT, 0), i, x_TD)
    for layer in range(graph.config.num_hidden_layers):
        hidden = run_layer(graph, layer, hidden=hidden, caches=caches, probe=probe)
        if progress is not None:
            progress(layer + 1, graph.config.num_hidden_layers)
    return _final_norm(graph, hidden, probe)


def run_layer(
    graph: Graph,
    layer: int,
    *,
    hidden: Sequence[Tensor],
    caches: Sequence[KVCache] | None = None,
    probe: Probe | None = None,
) -> list[Tensor]:
    """Carry the residual stream of each sequence, [T, D], through one layer."""
    probe = probe or Probe()
    after_attention = _run_attention(graph, layer, hidden, caches or [KVCache() for _ in hidden], probe)
    run_mlp = _run_sparse_mlp if graph.config.is_sparse_layer(layer) else _run_dense_mlp
    return run_mlp(graph, layer, after_attention, probe)


@torch.inference_mode()
def head_logits(
    graph: Graph,
    hidden_PD: Tensor,
    *,
    rows_per_block: int = HEAD_ROWS_PER_BLOCK,
    round_activations: RoundActivations | None = None,
) -> Tensor:
    """Compute the logits [P, V] of final hidden states; the head is read in blocks of rows, never whole."""
    head = graph.head
    if round_activations is not None:
        hidden_PD = round_activations(hidden_PD, head)
    vocabulary = head.shape[0]
    logits_PV = torch.empty(hidden_PD.shape[0], vocabulary)
    for first in range(0, vocabulary, rows_per_block):
        rows = slice(first, min(first + rows_per_block, vocabulary))
        torch.matmul(hidden_PD, read_tensor(head, rows).T, out=logits_PV[:, rows])
    return logits_PV


def logits(
    graph: Graph,
    tokens_T: Tensor,
    *,
    cache: KVCache | None = None,
    round_activations: RoundActivations | None = None,
) -> Tensor:
    """Compute the logits [T, V] of one sequence."""
    caches = None if cache is None else [cache]
    (hidden_TD,) = forward(graph, [tokens_T], caches=caches, round_activations=round_activations)
    return head_logits(graph, hidden_TD, round_activations=round_activations)


def _run_attention(
    graph: Graph, layer: int, hidden: Sequence[Tensor], caches: Sequence[KVCache], probe: Probe
) -> list[Tensor]:
    config = graph.config
    weights = read_attention(graph, layer, round_activations=probe.round_activations)
    after = []
    for i, (x_TD, cache) in enumerate(zip(hidden, caches, strict=True)):
        h_TD = rms_norm(x_TD, weights.input_layernorm, eps=config.rms_norm_eps)
        probe.see_input(Role(Kind.Q_PROJ, layer), i, h_TD)
        q_TNH, k_TKH, v_TKH = project_heads(config, weights, h_TD, start=cache.length_in(layer))
        probe.see(Site(Place.Q_ROPE, layer), i, q_TNH)
        probe.see(Site(Place.K_ROPE, layer), i, k_TKH)
        context_TI = attend(q_TNH, *cache.extend(layer, k_TKH, v_TKH))
        probe.see_input(Role(Kind.O_PROJ, layer), i, context_TI)
        added_TD = weights.o_proj(context_TI)
        probe.see(Site(Place.ATTENTION, layer), i, added_TD)
        after.append(x_TD + added_TD)
        probe.see(Site(Place.AFTER_ATTENTION, layer), i, after[-1])
    return after


def _run_dense_mlp(graph: Graph, layer: int, hidden: Sequence[Tensor], probe: Probe) -> list[Tensor]:
    norm = read_tensor(graph[Role(Kind.POST_ATTENTION_LAYERNORM, layer)])
    weights = read_gated(graph, layer, round_activations=probe.round_activations)
    after = []
    for i, x_TD in enumerate(hidden):
        h_TD = rms_norm(x_TD, norm, eps=graph.config.rms_norm_eps)
        probe.see_input(Role(Kind.GATE_PROJ, layer), i, h_TD)
        inner_TI = gated(weights, h_TD)
        probe.see_input(Role(Kind.DOWN_PROJ, layer), i, inner_TI)
        after.append(_add_mlp(layer, i, x_TD, weights.down_proj(inner_TI), probe))
    return after


def _run_sparse_mlp(graph: Graph, layer: int, hidden: Sequence[Tensor], probe: Probe) -> list[Tensor]:
    """The outer loop goes over experts: each is read once, and only if some token was sent to it."""
    norm = read_tensor(graph[Role(Kind.POST_ATTENTION_LAYERNORM, layer)])
    normed = [rms_norm(x_TD, norm, eps=graph.config.rms_norm_eps) for x_TD in hidden]
    routings = _route_all(graph, layer, normed, probe)
    added = [torch.zeros_like(x_TD) for x_TD in hidden]
    for expert in sorted({e for routing in routings for e in routing.experts.flatten().tolist()}):
        _add_expert(graph, layer, expert=expert, normed=normed, routings=routings, added=added, probe=probe)
    return [_add_mlp(layer, i, x_TD, added[i], probe) for i, x_TD in enumerate(hidden)]


def _route_all(graph: Graph, layer: int, normed: Sequence[Tensor], probe: Probe) -> list[Routing]:
    role = Role(Kind.ROUTER, layer)
    router = read_linear(graph[role], round_activations=probe.round_activations)
    for i, h_TD in enumerate(normed):
        probe.see_input(role, i, h_TD)
    return [route(graph.config, router, h_TD) for h_TD in normed]


def _add_expert(
    graph: Graph,
    layer: int,
    *,
    expert: int,
    normed: Sequence[Tensor],
    routings: Sequence[Routing],
    added: Sequence[Tensor],
    probe: Probe,
) -> None:
    """Add one expert's share to ``added``, in place, for the tokens that were sent to it."""
    weights = read_gated(graph, layer, expert=expert, round_activations=probe.round_activations)
    for i, (h_TD, routing) in enumerate(zip(normed, routings, strict=True)):
        tokens_P, shares_P = routing.tokens_of(expert)
        if len(tokens_P) == 0:
            continue
        h_PD = h_TD[tokens_P]
        probe.see_input(Role(Kind.GATE_PROJ, layer, expert), i, h_PD, shares_P)
        inner_PI = gated(weights, h_PD)
        probe.see_input(Role(Kind.DOWN_PROJ, layer, expert), i, inner_PI, shares_P)
        added[i].index_add_(0, tokens_P, weights.down_proj(inner_PI) * shares_P[:, None])


def _add_mlp(layer: int, sequence: int, x_TD: Tensor, added_TD: Tensor, probe: Probe) -> Tensor:
    probe.see(Site(Place.MLP, layer), sequence, added_TD)
    after_TD = x_TD + added_TD
    probe.see(Site(Place.OUTPUT, layer), sequence, after_TD)
    return after_TD


def _final_norm(graph: Graph, hidden: Sequence[Tensor], probe: Probe) -> list[Tensor]:
    norm = read_tensor(graph[Role(Kind.NORM)])
    final = [rms_norm(x_TD, norm, eps=graph.config.rms_norm_eps) for x_TD in hidden]
    for i, x_TD in enumerate(final):
        probe.see(Site(Place.FINAL), i, x_TD)
        probe.see_input(graph.head.role, i, x_TD)
    return final
