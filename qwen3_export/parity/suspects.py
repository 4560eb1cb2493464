"""Known mistakes of broken runtimes: what a sub-block of a layer computes under each of them.

A check knows the first place where a runtime's state differs from the reference's. Everything before it is right, so
its input is known. Each mistake that exporters have made at this place can then be computed and compared with the state
that was found. A mistake that gives this state to several digits is named as the cause; if none does, no cause is
named.

Each function yields pairs of a sentence and the state that the mistake would give.

Shapes: T tokens, D hidden, N heads, K kv heads, H head_dim, I in_features
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.reference.layer import attend, rms_norm, route
from qwen3_export.reference.probe import Place
from qwen3_export.reference.weights import embed, read_gated, read_linear, read_tensor
from qwen3_export.rope import Rotation, rotate, rotation

__all__ = ["SUSPECTS", "Inputs", "Suspects"]

EPSILONS = (1e-5, 1e-8, 1e-12, 1e-4)
BASES = (10_000.0, 100_000.0, 500_000.0, 1_000_000.0, 5_000_000.0, 10_000_000.0)

Suspects = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The reference's states before a place; ``stream`` is the residual stream, ``states`` the layer's other places."""

    graph: Graph
    layer: int | None
    tokens_T: Tensor
    stream_TD: Tensor
    states: Mapping[Place, Tensor]
    outputs: Mapping[int, Tensor] = field(default_factory=dict)  # of every layer

    @property
    def config(self) -> Qwen3Config:
        return self.graph.config

    @property
    def eps(self) -> float:
        return self.config.rms_norm_eps

    def read(self, kind: Kind) -> Tensor:
        return read_tensor(self.graph[Role(kind, None if kind is Kind.NORM else self.layer)])

    def normed(self, kind: Kind) -> Tensor:
        """The stream after one of the layer's norms."""
        return rms_norm(self.stream_TD, self.read(kind), eps=self.eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heads:
    """The steps from a layer's input to rotated queries or keys; any step can be replaced by a wrong one."""

    inputs: Inputs
    proj: Kind
    norm: Kind
    other_norm: Kind

    def __call__(
        self,
        *,
        h_TD: Tensor | None = None,
        rows: Callable[[Tensor], Tensor] = lambda weight: weight,
        normed: Callable[[Tensor], Tensor] | None = None,
        turned: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        source = self.inputs.normed(Kind.INPUT_LAYERNORM) if h_TD is None else h_TD
        flat = functional.linear(source, rows(self.inputs.read(self.proj)))
        x_TNH = flat.view(len(flat), -1, self.inputs.config.head_dim)
        x_TNH = (normed or self.norm_with(self.inputs.read(self.norm)))(x_TNH)
        return (turned or (lambda x: rotate(x, self.turn())))(x_TNH)

    def norm_with(self, weight: Tensor, *, eps: float | None = None) -> Callable[[Tensor], Tensor]:
        return lambda x_TNH: rms_norm(x_TNH, weight, eps=self.inputs.eps if eps is None else eps)

    def turn(self, *, start: int = 0, **changes: object) -> Rotation:
        config = replace(self.inputs.config, **changes)  # type: ignore[arg-type]
        return rotation(config, start=start, count=len(self.inputs.tokens_T))

    def turned_with(self, **changes: object) -> Callable[[Tensor], Tensor]:
        turn = self.turn(**changes)  # type: ignore[arg-type]
        return lambda x_TNH: rotate(x_TNH, turn)


def _queries(inputs: Inputs) -> Suspects:
    heads = _Heads(inputs=inputs, proj=Kind.Q_PROJ, norm=Kind.Q_NORM, other_norm=Kind.K_NORM)
    yield from _rotated(heads)
    scale = inputs.config.head_dim**-0.5
    yield "queries are scaled by 1/sqrt(head_dim) already", heads() * scale


def _keys(inputs: Inputs) -> Suspects:
    yield from _rotated(_Heads(inputs=inputs, proj=Kind.K_PROJ, norm=Kind.K_NORM, other_norm=Kind.Q_NORM))


def _rotated(heads: _Heads) -> Suspects:
    inputs, norm = heads.inputs, heads.norm.value
    weight, other = inputs.read(heads.norm), inputs.read(heads.other_norm)
    yield f"{norm} is missing", heads(normed=lambda x: x)
    yield f"{norm} and {heads.other_norm.value} are swapped", heads(normed=heads.norm_with(other))
    yield f"{norm}'s weight is not applied", heads(normed=heads.norm_with(torch.ones_like(weight)))
    yield f"{norm}'s weight is taken as 1 + w", heads(normed=heads.norm_with(1 + weight))
    yield f"{norm} runs over all heads together", heads(normed=lambda x: _norm_over_heads(x, weight, inputs.eps))
    yield (
        f"{norm} comes after RoPE",
        heads(normed=lambda x: x, turned=lambda x: heads.norm_with(weight)(rotate(x, heads.turn()))),
    )
    for eps in EPSILONS:
        yield f"eps of {norm} is {eps:g}", heads(normed=heads.norm_with(weight, eps=eps))
        h_TD = rms_norm(inputs.stream_TD, inputs.read(Kind.INPUT_LAYERNORM), eps=eps)
        yield f"eps of input_layernorm is {eps:g}", heads(h_TD=h_TD)
        yield f"eps is {eps:g}", heads(h_TD=h_TD, normed=heads.norm_with(weight, eps=eps))
    yield from _turned(heads)
    yield "input_layernorm is missing", heads(h_TD=inputs.stream_TD)
    yield (
        "post_attention_layernorm stands in input_layernorm's place",
        heads(h_TD=inputs.normed(Kind.POST_ATTENTION_LAYERNORM)),
    )
    head_dim = inputs.config.head_dim
    yield (
        f"{heads.proj.value}'s rows are in the order of interleaved RoPE",
        heads(rows=lambda w: w.view(-1, 2, head_dim // 2, w.shape[1]).transpose(1, 2).reshape(w.shape)),
    )
    yield (
        f"{heads.proj.value}'s heads are in reverse order",
        heads(rows=lambda w: w.view(-1, head_dim, w.shape[1]).flip(0).reshape(w.shape)),
    )
    yield from _transposed(heads.proj, inputs, lambda rows: heads(rows=rows))


def _turned(heads: _Heads) -> Suspects:
    inputs = heads.inputs
    yield "RoPE is missing", heads(turned=lambda x: x)
    yield (
        "RoPE pairs neighbours (interleaved) in place of halves",
        heads(turned=lambda x: _interleaved(x, heads.turn())),
    )
    yield (
        "RoPE turns the other way",
        heads(turned=lambda x: rotate(x, Rotation(cos=heads.turn().cos, sin=-heads.turn().sin))),
    )
    yield "RoPE begins at position 1", heads(turned=heads.turned_with(start=1))
    for base in BASES:
        if base != inputs.config.rope_theta:
            yield f"RoPE's base is {base:,.0f}", heads(turned=heads.turned_with(rope_theta=base))
    if inputs.config.rope_scaling is not None:
        yield "YaRN is missing", heads(turned=heads.turned_with(rope_scaling=None))
        yield (
            "YaRN's attention factor is missing",
            heads(
                turned=lambda x: rotate(x, heads.turn()) / inputs.config.rope_scaling.attention_factor  # type: ignore[union-attr]
            ),
        )


def _attention(inputs: Inputs) -> Suspects:
    q_TNH, k_TKH = inputs.states[Place.Q_ROPE], inputs.states[Place.K_ROPE]
    h_TD = inputs.normed(Kind.INPUT_LAYERNORM)
    v_TKH = functional.linear(h_TD, inputs.read(Kind.V_PROJ)).view(k_TKH.shape)
    o_proj = inputs.read(Kind.O_PROJ)
    head_dim = inputs.config.head_dim

    def out(q: Tensor = q_TNH, k: Tensor = k_TKH, v: Tensor = v_TKH) -> Tensor:
        return functional.linear(attend(q, k, v), o_proj)

    yield "the causal mask is missing", functional.linear(_attend_to_all(q_TNH, k_TKH, v_TKH), o_proj)
    yield "scores are not scaled by 1/sqrt(head_dim)", out(q=q_TNH * head_dim**0.5)
    yield "scores are scaled by 1/head_dim", out(q=q_TNH * head_dim**-0.5)
    hidden = inputs.config.hidden_size / inputs.config.num_attention_heads
    yield "scores are scaled by hidden_size / heads", out(q=q_TNH * (head_dim / hidden) ** 0.5)
    times = q_TNH.shape[1] // k_TKH.shape[1]
    yield "query heads share key heads in turn", out(k=k_TKH.repeat(1, times, 1), v=v_TKH.repeat(1, times, 1))
    yield "values are keys", out(v=k_TKH)
    yield "keys are one position late", out(k=torch.cat((torch.zeros_like(k_TKH[:1]), k_TKH[:-1])))
    yield "values are one position late", out(v=torch.cat((torch.zeros_like(v_TKH[:1]), v_TKH[:-1])))
    for eps in EPSILONS:  # q_norm and k_norm hide it from queries and keys
        wrong_TD = rms_norm(inputs.stream_TD, inputs.read(Kind.INPUT_LAYERNORM), eps=eps)
        yield f"eps is {eps:g}", out(v=functional.linear(wrong_TD, inputs.read(Kind.V_PROJ)).view(k_TKH.shape))
    context = attend(q_TNH, k_TKH, v_TKH).view(len(q_TNH), -1, head_dim)
    yield (
        "heads and their dimensions are swapped before o_proj",
        functional.linear(context.transpose(1, 2).flatten(1), o_proj),
    )
    flat = context.flatten(1)
    yield from _transposed(Kind.O_PROJ, inputs, lambda rows: functional.linear(flat, rows(o_proj)))


def _after_attention(inputs: Inputs) -> Suspects:
    added_TD = inputs.states[Place.ATTENTION]
    yield "the residual is not added", added_TD
    yield "the residual is taken after the norm", inputs.normed(Kind.INPUT_LAYERNORM) + added_TD
    yield "attention is not added", inputs.stream_TD
    yield "attention is added twice", inputs.stream_TD + 2 * added_TD
    for told, wrong_TD in _attention(inputs):  # for runtimes that do not show the output of attention
        yield told, inputs.stream_TD + wrong_TD


def _mlp(inputs: Inputs) -> Suspects:
    """Here ``stream`` is the residual stream after attention."""
    assert inputs.layer is not None
    if inputs.config.is_sparse_layer(inputs.layer):
        yield from _experts(inputs)
        return
    norm = inputs.read(Kind.POST_ATTENTION_LAYERNORM)
    gate, up, down = (inputs.read(kind) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ, Kind.DOWN_PROJ))
    h_TD = rms_norm(inputs.stream_TD, norm, eps=inputs.eps)

    def out(h: Tensor = h_TD, act: Callable[[Tensor], Tensor] = functional.silu) -> Tensor:
        return functional.linear(act(functional.linear(h, gate)) * functional.linear(h, up), down)

    swapped = functional.silu(functional.linear(h_TD, up)) * functional.linear(h_TD, gate)
    yield "gate_proj and up_proj are swapped", functional.linear(swapped, down)
    yield "the activation is gelu", out(act=functional.gelu)
    yield "the activation is gelu (tanh)", out(act=lambda x: functional.gelu(x, approximate="tanh"))
    yield "the activation is relu", out(act=functional.relu)
    yield "the activation is missing", out(act=lambda x: x)
    yield "post_attention_layernorm is missing", out(inputs.stream_TD)
    yield "input_layernorm stands in post_attention_layernorm's place", out(inputs.normed(Kind.INPUT_LAYERNORM))
    for eps in EPSILONS:
        yield f"eps of post_attention_layernorm is {eps:g}", out(rms_norm(inputs.stream_TD, norm, eps=eps))


def _experts(inputs: Inputs) -> Suspects:
    assert inputs.layer is not None
    config, h_TD = inputs.config, inputs.normed(Kind.POST_ATTENTION_LAYERNORM)
    router = read_linear(inputs.graph[Role(Kind.ROUTER, inputs.layer)])

    def mixed(changed: Qwen3Config) -> Tensor:
        assert inputs.layer is not None
        routing, out = route(changed, router, h_TD), torch.zeros_like(h_TD)
        for expert in sorted(set(routing.experts.flatten().tolist())):
            tokens_P, shares_P = routing.tokens_of(expert)
            weights = read_gated(inputs.graph, inputs.layer, expert=expert)
            h_PD = h_TD[tokens_P]
            inner = functional.silu(weights.gate_proj(h_PD)) * weights.up_proj(h_PD)
            out.index_add_(0, tokens_P, weights.down_proj(inner) * shares_P[:, None])
        return out

    told = "not brought to one" if config.norm_topk_prob else "brought to one"
    yield f"the experts' shares are {told}", mixed(replace(config, norm_topk_prob=not config.norm_topk_prob))
    for count in (config.num_experts_per_tok - 1, config.num_experts_per_tok + 1):
        if 0 < count <= config.num_experts:
            yield f"{count} experts a token are mixed", mixed(replace(config, num_experts_per_tok=count))


def _output(inputs: Inputs) -> Suspects:
    """Here ``stream`` is the residual stream after attention."""
    added_TD = inputs.states[Place.MLP]
    yield "the residual is not added", added_TD
    yield "the residual is taken after the norm", inputs.normed(Kind.POST_ATTENTION_LAYERNORM) + added_TD
    yield "the MLP is not added", inputs.stream_TD
    for told, wrong_TD in _mlp(inputs):  # for runtimes that do not show the output of the MLP
        yield told, inputs.stream_TD + wrong_TD


def _input(inputs: Inputs) -> Suspects:
    found = embed(inputs.graph, inputs.tokens_T)
    yield "the embedding is scaled by sqrt(hidden_size)", found * inputs.config.hidden_size**0.5
    last = inputs.config.vocab_size - 1
    yield "the embedding's rows are one too far", embed(inputs.graph, (inputs.tokens_T + 1).clamp(max=last))
    yield "the embedding's rows are one too early", embed(inputs.graph, (inputs.tokens_T - 1).clamp(min=0))


def _final(inputs: Inputs) -> Suspects:
    weight = inputs.read(Kind.NORM)
    yield "the final norm is missing", inputs.stream_TD
    for layer, stream_TD in inputs.outputs.items():
        yield f"layers from {layer + 1} on are left out", rms_norm(stream_TD, weight, eps=inputs.eps)
    yield "the final norm's weight is not applied", rms_norm(inputs.stream_TD, torch.ones_like(weight), eps=inputs.eps)
    for eps in EPSILONS:
        yield f"eps of the final norm is {eps:g}", rms_norm(inputs.stream_TD, weight, eps=eps)


SUSPECTS: Mapping[Place, Callable[[Inputs], Suspects]] = MappingProxyType(
    {
        Place.INPUT: _input,
        Place.Q_ROPE: _queries,
        Place.K_ROPE: _keys,
        Place.ATTENTION: _attention,
        Place.AFTER_ATTENTION: _after_attention,
        Place.MLP: _mlp,
        Place.OUTPUT: _output,
        Place.FINAL: _final,
    }
)


def _transposed(kind: Kind, inputs: Inputs, out: Callable[[Callable[[Tensor], Tensor]], Tensor]) -> Suspects:
    """Suspect that a matrix's bytes were read in the other order."""
    rows, columns = inputs.read(kind).shape
    yield f"{kind.value} is stored the other way round", out(lambda w: w.T.reshape(rows, columns))


def _norm_over_heads(x_TNH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    return x_TNH * torch.rsqrt(x_TNH.square().mean(dim=(1, 2), keepdim=True) + eps) * weight_H


def _interleaved(x_TNH: Tensor, turn: Rotation) -> Tensor:
    cos_T1R, sin_T1R = turn.cos[:, None], turn.sin[:, None]
    even, odd = x_TNH[..., 0::2], x_TNH[..., 1::2]
    return torch.stack((even * cos_T1R - odd * sin_T1R, odd * cos_T1R + even * sin_T1R), dim=-1).flatten(-2)


def _attend_to_all(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
    times = q_TNH.shape[1] // k_TKH.shape[1]
    k, v = (x.repeat_interleave(times, dim=1).transpose(0, 1) for x in (k_TKH, v_TKH))
    shares = torch.softmax(q_TNH.transpose(0, 1) @ k.transpose(1, 2) * q_TNH.shape[-1] ** -0.5, dim=-1)
    return (shares @ v).transpose(0, 1).flatten(1)
