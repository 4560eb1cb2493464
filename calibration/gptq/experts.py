"""Solve the experts of one layer in a sequential GPTQ run.

Each expert is solved for the tokens that the quantized model sends to it, weighted by the square of its share, because
that is how its errors count in the residual stream. An expert with few tokens would be fitted to their noise, so its
sums are shrunk towards the layer's:  H_e' = H_e + κ H_layer.  For gate and up, H_layer is known exactly, because all
experts of a layer have the same input; for down, some of the layer's tokens are sent through the expert. An expert
without any token is solved for the layer's average token, and the report says so.

Shapes: T tokens of one window, P tokens routed to one expert (of all windows), D hidden, I in
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_export.calibration.gptq.layer import Streams, gated_weights
from qwen3_export.calibration.gptq.report import RoutingReport
from qwen3_export.calibration.gptq.run import GptqRun
from qwen3_export.calibration.moments import MomentSums
from qwen3_export.calibration.window_states import WindowStates
from qwen3_export.graph import Kind, Role
from qwen3_export.reference.layer import Routing, gated, rms_norm, route
from qwen3_export.reference.weights import Linear, read_tensor

__all__ = ["run_sparse_mlp"]

# So many tokens of the layer, evenly spaced, are sent through every expert besides its own.
SAMPLED_TOKENS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """What the experts of a layer share: the inputs and the routing of both models, and the sums of their outputs."""

    normed: WindowStates
    exact: WindowStates
    routings: Sequence[Routing]
    exact_routings: Sequence[Routing]
    added: WindowStates
    exact_added: WindowStates
    sums: MomentSums
    mean_square_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Tokens of all windows: inputs [P, D] of both models, errors of the residual stream, and weights."""

    x_PD: Tensor
    exact_PD: Tensor
    lost_PD: Tensor
    weight_P: Tensor


def run_sparse_mlp(run: GptqRun, layer: int, streams: Streams) -> None:
    """Solve all experts of a layer, and pass both streams through them."""
    shared = _prepare(run, layer, streams)
    sample = _sample(run, shared, streams)
    for expert in range(run.graph.config.num_experts):
        own = _tokens_of(run, shared, streams, expert)
        _solve_expert(run, layer, expert, shared=shared, own=own, sample=sample)
        _add_expert(run, layer, expert, shared)
    for i in range(len(run.lengths)):
        streams.stream[i] = streams.stream[i] + shared.added[i]
        streams.exact[i] = streams.exact[i] + shared.exact_added[i]
    for states in (shared.normed, shared.exact, shared.added, shared.exact_added):
        states.close()
    run.routing.append(_report(run, layer, shared))
    run.advance()
    run.advance()


def _prepare(run: GptqRun, layer: int, streams: Streams) -> _Layer:
    """Norm and route all tokens in both models."""
    config = run.graph.config
    norm_D = read_tensor(run.graph[Role(Kind.POST_ATTENTION_LAYERNORM, layer)])
    router: Linear = run.quantized(Kind.ROUTER, layer)
    exact_router: Linear = run.exact(Kind.ROUTER, layer)
    normed, exact, added, exact_added = (run.states(config.hidden_size) for _ in range(4))
    sums, routings, exact_routings = MomentSums(config.hidden_size), [], []
    for i in range(len(run.lengths)):
        normed[i] = rms_norm(streams.stream[i], norm_D, eps=config.rms_norm_eps)
        exact[i] = rms_norm(streams.exact[i], norm_D, eps=config.rms_norm_eps)
        sums.add(normed[i], exact[i])
        routings.append(route(config, router, normed[i]))
        exact_routings.append(route(config, exact_router, exact[i]))
        added[i], exact_added[i] = torch.zeros_like(normed[i]), torch.zeros_like(exact[i])
    shares = torch.cat([routing.shares.flatten() for routing in routings])
    return _Layer(
        normed=normed,
        exact=exact,
        routings=routings,
        exact_routings=exact_routings,
        added=added,
        exact_added=exact_added,
        sums=sums,
        mean_square_share=float(shares.square().mean()),
    )


def _tokens_of(run: GptqRun, shared: _Layer, streams: Streams, expert: int) -> _Tokens:
    """The tokens that the quantized model sends to an expert, with weights of 1 on average."""
    parts = []
    for i in range(len(run.lengths)):
        tokens_P, shares_P = shared.routings[i].tokens_of(expert)
        weight_P = shares_P.square() / shared.mean_square_share
        parts.append((shared.normed[i][tokens_P], shared.exact[i][tokens_P], streams.lost(i)[tokens_P], weight_P))
    x_PD, exact_PD, lost_PD, weight_P = (torch.cat(column) for column in zip(*parts, strict=True))
    return _Tokens(x_PD=x_PD, exact_PD=exact_PD, lost_PD=lost_PD, weight_P=weight_P)


def _sample(run: GptqRun, shared: _Layer, streams: Streams) -> _Tokens:
    """Some tokens of the layer, evenly spaced, whichever expert they are sent to."""
    step = max(1, sum(run.lengths) // SAMPLED_TOKENS)
    rows = range(len(run.lengths))
    x_PD, exact_PD, lost_PD = (
        torch.cat([states(i)[::step] for i in rows])
        for states in (shared.normed.__getitem__, shared.exact.__getitem__, streams.lost)
    )
    return _Tokens(x_PD=x_PD, exact_PD=exact_PD, lost_PD=lost_PD, weight_P=torch.ones(len(x_PD)))


def _solve_expert(run: GptqRun, layer: int, expert: int, *, shared: _Layer, own: _Tokens, sample: _Tokens) -> None:
    gate, up, down = roles = [Role(kind, layer, expert) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ, Kind.DOWN_PROJ)]
    if not run.needs(*roles):
        return
    # An expert without tokens needs the layer's sums, whatever the settings.
    mass = run.settings.expert_shrinkage or (0.0 if len(own.x_PD) else 1.0)
    sums = MomentSums(own.x_PD.shape[1])
    sums.add(own.x_PD, own.exact_PD, weight_P=own.weight_P)
    sums.add_share(shared.sums, mass)
    run.solve([gate, up], [sums])
    inner = _inner_sums(run, layer, expert, own)
    inner.add_share(_inner_sums(run, layer, expert, sample), mass)
    run.solve([down], [inner])


def _inner_sums(run: GptqRun, layer: int, expert: int, tokens: _Tokens) -> MomentSums:
    """The moments of an expert's down_proj over some tokens."""
    exact = gated_weights(run, layer, expert=expert)
    quantized = gated_weights(run, layer, expert=expert, quantized=True)
    hidden, columns = exact.down_proj.weight.shape
    sums = MomentSums(columns, residual_size=hidden if run.settings.take_back_residual else 0)
    if len(tokens.x_PD):
        sums.add(
            gated(quantized, tokens.x_PD),
            gated(exact, tokens.exact_PD),
            residual_PO=tokens.lost_PD,
            weight_P=tokens.weight_P,
        )
    return sums


def _add_expert(run: GptqRun, layer: int, expert: int, shared: _Layer) -> None:
    """Add the output of an expert to the output of the layer, in both models."""
    quantized = gated_weights(run, layer, expert=expert, quantized=True)
    down = run.quantized(Kind.DOWN_PROJ, layer, expert)
    exact = gated_weights(run, layer, expert=expert)
    for i in range(len(run.lengths)):
        for states, routing, added, weights, last in (
            (shared.normed, shared.routings[i], shared.added, quantized, down),
            (shared.exact, shared.exact_routings[i], shared.exact_added, exact, exact.down_proj),
        ):
            tokens_P, shares_P = routing.tokens_of(expert)
            if len(tokens_P):
                part_PD = last(gated(weights, states[i][tokens_P])) * shares_P[:, None]
                added[i] = added[i].index_add(0, tokens_P, part_PD)


def _report(run: GptqRun, layer: int, shared: _Layer) -> RoutingReport:
    counts = torch.zeros(run.graph.config.num_experts, dtype=torch.int64)
    changed = 0
    for routing, exact in zip(shared.routings, shared.exact_routings, strict=True):
        counts += torch.bincount(routing.experts.flatten(), minlength=len(counts))
        changed += int((routing.experts.sort().values != exact.experts.sort().values).any(dim=-1).sum())
    return RoutingReport(layer=layer, tokens=tuple(counts.tolist()), changed=changed / sum(run.lengths))
