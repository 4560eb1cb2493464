"""Find the known mistake that gives a runtime's logits, for runtimes whose hidden states cannot be seen.

Some runtimes fuse a whole layer and show nothing inside it. For these, the reference runs whole models with one mistake
each, and the mistake whose logits match the runtime's is named.
"""

# T tokens  V vocabulary

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from qwen3_export.graph import Graph, Kind, RenamedWeight, Role
from qwen3_export.parity.compare import Arithmetic, RunLogits, compare_exact
from qwen3_export.parity.report import FirstDivergence
from qwen3_export.parity.suspects import BASES, EPSILONS
from qwen3_export.reference.model import Place

__all__ = ["explain_logits"]

# A wrong model explains the logits if it leaves at most a hundredth of the divergence.
EXPLAINED = 0.01
MAX_TOKENS = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suspect:
    cause: str
    graph: Graph
    place: Place
    layer: int | None = None


def explain_logits(
    graph: Graph, tokens: Sequence[int], run: RunLogits, *, arithmetic: Arithmetic | None = None
) -> FirstDivergence | None:
    """The mistake and its place in the model, or None if no known mistake gives the logits of ``run``."""
    text = list(tokens)[:MAX_TOKENS]
    logits_TV = np.array(run(text))
    right = _divergence(graph, text, logits_TV, arithmetic)
    found, least = None, right * EXPLAINED
    for suspect in _suspects(graph):
        left = _divergence(suspect.graph, text, logits_TV, arithmetic)
        if left < least:
            found, least = suspect, left
    if found is None:
        return None
    return FirstDivergence(layer=found.layer, site=found.place.value, relative=right, cause=found.cause)


def _divergence(graph: Graph, text: Sequence[int], logits_TV: np.ndarray, arithmetic: Arithmetic | None) -> float:
    """The mean KL divergence in nats per position."""
    found = compare_exact(graph, [text], lambda _tokens: logits_TV, arithmetic=arithmetic).mean_kld
    return float("inf") if found is None or not np.isfinite(found) else found


def _suspects(graph: Graph) -> Iterator[_Suspect]:
    config = graph.config
    for eps in EPSILONS:
        yield _Suspect(
            cause=f"eps is {eps:g}",
            graph=replace(graph, config=replace(config, rms_norm_eps=eps)),
            place=Place.ATTENTION,
            layer=0,
        )
    for base in BASES:
        if base != config.rope_theta:
            changed = replace(graph, config=replace(config, rope_theta=base))
            yield _Suspect(cause=f"RoPE's base is {base:,.0f}", graph=changed, place=Place.Q_ROPE, layer=0)
    if config.rope_scaling is not None:
        changed = replace(graph, config=replace(config, rope_scaling=None))
        yield _Suspect(cause="YaRN is missing", graph=changed, place=Place.Q_ROPE, layer=0)
    every = range(config.num_hidden_layers)
    for layers in (every, *((layer,) for layer in every)):
        where, layer = ("in every layer", 0) if layers is every else ("in this layer", layers[0])
        for first, second, place in (
            (Kind.Q_NORM, Kind.K_NORM, Place.Q_ROPE),
            (Kind.GATE_PROJ, Kind.UP_PROJ, Place.MLP),
        ):
            if first is Kind.GATE_PROJ and config.is_moe:
                continue
            yield _Suspect(
                cause=f"{first.value} and {second.value} are swapped {where}",
                graph=_swapped(graph, first, second, layers),
                place=place,
                layer=layer,
            )


def _swapped(graph: Graph, first: Kind, second: Kind, layers: Sequence[int]) -> Graph:
    """Swap two kinds of weights."""
    weights = dict(graph.weights)
    for layer in layers:
        for kind, other in ((first, second), (second, first)):
            role = Role(kind, layer)
            weights[graph[role].name] = RenamedWeight(source=graph[Role(other, layer)], new_role=role)
    return graph.with_weights(weights)
