"""Carry gradients back through a model in fp32, layer by layer: what a change in each weight's output would do.

Where nothing else is given, a token is drawn at each position from the model's own distribution. The gradient g of its
log-probability by the output y of a weight says how an error Δy there changes the distribution: to second order, the KL
divergence is half the mean of (g · Δy)² over the drawn tokens (the Fisher information). One pass gives these gradients
for all weights.

Memory holds the residual stream before each layer, one layer of weights (or one expert), and the inputs and gradients
of half a layer. Layers are computed once forwards, and again on the way back.

Shapes: T tokens of one window, D hidden, I in, O out, P positions (or tokens routed to one expert), V vocabulary, N
heads, K kv heads, H head_dim
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.calibration.window_states import MEMORY_LIMIT, WindowStates
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.reference.layer import Routing, attend, gated, project_heads, rms_norm, route
from qwen3_export.reference.model import head_logits, run_layer
from qwen3_export.reference.weights import (
    AttentionWeights,
    GatedWeights,
    Linear,
    embed,
    read_attention,
    read_gated,
    read_linear,
    read_tensor,
)

__all__ = ["HeadGradient", "Passed", "Visit", "backward", "drawn_tokens"]

# Logits of so many positions are held at once: 78 MB with Qwen3's vocabulary.
POSITIONS_PER_BLOCK = 128
HEAD_ROWS_PER_BLOCK = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What passed through one weight: inputs [T, I] and gradients [T, O] at its outputs, window by window.

    Errors in values v reach several later tokens through attention, and add up there. So ``gradients`` of v_proj are
    those after attention, and ``spread(i, Δy)`` carries an error in window i there; those at its own outputs are
    ``own_gradients``. The other weights have neither.
    """

    inputs: Sequence[Tensor]
    gradients: Sequence[Tensor]
    spread: Callable[[int, Tensor], Tensor] | None = None
    own_gradients: Sequence[Tensor] | None = None


Visit = Callable[[Role, Passed], None]
VisitNorm = Callable[[Role, Tensor], None]

HeadGradient = Callable[[Sequence[Tensor]], Sequence[Tensor]]
"""From the final hidden states of all windows, [T, D] each, the gradients by them."""


@dataclass(frozen=True, slots=True)
class _Taped(Linear):
    """A matrix that keeps the inputs and outputs of each call."""

    tape: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def __call__(self, x_TI: Tensor) -> Tensor:
        y_TO = functional.linear(x_TI, self.weight)
        self.tape.append((x_TI, y_TO))
        return y_TO


@torch.no_grad()
def backward(
    graph: Graph,
    windows: Sequence[Tensor],
    visit: Visit,
    *,
    folder: Path,
    head_gradient: HeadGradient | None = None,
    visit_norm: VisitNorm = lambda _role, _gradient: None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Call ``visit`` for each linear weight, from the last layer to the first, and at last for the embedding.

    ``windows`` are token ids, [T] int64 each. The head is visited with the final hidden states as inputs and no
    gradients (its own output is the distribution); the embedding with the ids as inputs, [T, 1]. Where the two are
    tied, the one weight is visited twice. Experts that no token is sent to are not visited. ``visit_norm`` is called
    for each norm with the gradient by its weights, summed over all tokens. ``head_gradient`` is what begins at the end
    of the model: by default ``drawn_tokens``. Large states go to a file in ``folder``. ``advance`` is called twice for
    each layer.
    """
    config = graph.config
    lengths = [len(tokens_T) for tokens_T in windows]
    limit = MEMORY_LIMIT // (config.num_hidden_layers + 1)
    states = [
        WindowStates(lengths, config.hidden_size, folder=folder, memory_limit=limit)
        for _ in range(config.num_hidden_layers + 1)
    ]
    try:
        for i, tokens_T in enumerate(windows):
            states[0][i] = embed(graph, tokens_T)
        for layer in range(config.num_hidden_layers):
            for i, x_TD in enumerate(run_layer(graph, layer, hidden=[states[layer][j] for j in range(len(windows))])):
                states[layer + 1][i] = x_TD
            advance()
        back = _Back(graph=graph, visit=visit, visit_norm=visit_norm)
        gradients = back.through_head(states[-1], head_gradient or drawn_tokens(graph))
        for layer in reversed(range(config.num_hidden_layers)):
            states[layer + 1].close()
            gradients = back.through_layer(layer, states[layer], gradients)
            advance()
    finally:
        for part in states:
            part.close()
    inputs = [tokens_T[:, None] for tokens_T in windows]
    visit(Role(Kind.EMBED_TOKENS), Passed(inputs=inputs, gradients=gradients))


def drawn_tokens(graph: Graph, *, seed: int = 0) -> HeadGradient:
    """Gradients of the log-probabilities of tokens that are drawn from the model's distribution."""
    generator = torch.Generator().manual_seed(seed)

    def gradient(hidden_TD: Tensor) -> Tensor:
        blocks = torch.split(hidden_TD, POSITIONS_PER_BLOCK)
        return torch.cat([_sampled_gradient(graph, part_PD, generator) for part_PD in blocks])

    return lambda final: [gradient(hidden_TD) for hidden_TD in final]


def _sampled_gradient(graph: Graph, hidden_PD: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient [P, D] of the log-probability of a drawn token: its row of the head minus the expected row."""
    p_PV = torch.softmax(head_logits(graph, hidden_PD), dim=-1)
    drawn_P = torch.multinomial(p_PV, 1, generator=generator)
    p_PV.neg_().scatter_add_(1, drawn_P, torch.ones(len(p_PV), 1))
    gradient_PD = torch.zeros_like(hidden_PD)
    for first in range(0, p_PV.shape[1], HEAD_ROWS_PER_BLOCK):
        rows = slice(first, min(first + HEAD_ROWS_PER_BLOCK, p_PV.shape[1]))
        gradient_PD += p_PV[:, rows] @ read_tensor(graph.head, rows)
    return gradient_PD


@dataclass(frozen=True, slots=True, kw_only=True)
class _Back:
    """The way back through one model; each step takes the gradients after it, and gives those before it."""

    graph: Graph
    visit: Visit
    visit_norm: VisitNorm

    def through_head(self, states: WindowStates, head_gradient: HeadGradient) -> list[Tensor]:
        role, eps = Role(Kind.NORM), self.graph.config.rms_norm_eps
        norm_D = _leaf(self.graph[role])
        final = [rms_norm(states[i], norm_D.detach(), eps=eps) for i in range(len(states))]
        self.visit(self.graph.head.role, Passed(inputs=final, gradients=()))
        gradients, by_norm_D = [], torch.zeros_like(norm_D)
        for i, gradient_TD in enumerate(head_gradient(final)):
            with torch.enable_grad():
                x_TD = states[i].detach().requires_grad_()
                h_TD = rms_norm(x_TD, norm_D, eps=eps)
            by_x_TD, by_weights_D = torch.autograd.grad(h_TD, [x_TD, norm_D], gradient_TD)
            gradients.append(by_x_TD)
            by_norm_D += by_weights_D
        self.visit_norm(role, by_norm_D)
        return gradients

    def through_layer(self, layer: int, states: WindowStates, gradients: list[Tensor]) -> list[Tensor]:
        attention = read_attention(self.graph, layer)
        config, eps = self.graph.config, self.graph.config.rms_norm_eps
        middle = []
        for i in range(len(states)):
            h_TD = rms_norm(states[i], attention.input_layernorm, eps=eps)
            middle.append(states[i] + attention.o_proj(attend(*project_heads(config, attention, h_TD))))
        through_mlp = self._through_sparse if config.is_sparse_layer(layer) else self._through_dense
        return self._through_attention(layer, attention, states, through_mlp(layer, middle, gradients))

    def _through_dense(self, layer: int, middle: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        role = Role(Kind.POST_ATTENTION_LAYERNORM, layer)
        norm_D, weights = _leaf(self.graph[role]), read_gated(self.graph, layer)
        before, seen, by_norm_D = [], _Seen(layer), torch.zeros_like(norm_D)
        for x_TD, gradient_TD in zip(middle, gradients, strict=True):
            with torch.enable_grad():
                x_TD.requires_grad_()
                taped = _taped_mlp(weights)
                h_TD = rms_norm(x_TD, norm_D, eps=self.graph.config.rms_norm_eps)
                added_TD = taped.down_proj(gated(taped, h_TD))
            by_x_TD, by_weights_D = seen.add_mlp(taped, added_TD, gradient_TD, [x_TD, norm_D])
            before.append(gradient_TD + by_x_TD)
            by_norm_D += by_weights_D
        seen.tell(self.visit)
        self.visit_norm(role, by_norm_D)
        return before

    def _through_sparse(self, layer: int, middle: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Each expert is read once: inputs and gradients of all windows pass through it before the next one."""
        config, role = self.graph.config, Role(Kind.POST_ATTENTION_LAYERNORM, layer)
        norm_D = _leaf(self.graph[role])
        router = read_linear(self.graph[Role(Kind.ROUTER, layer)])
        normed, routings = [], []
        for x_TD in middle:
            with torch.enable_grad():
                normed.append(rms_norm(x_TD.requires_grad_(), norm_D, eps=config.rms_norm_eps))
                routings.append(route(config, router, normed[-1]))
        by_normed = [torch.zeros_like(h_TD) for h_TD in normed]
        by_shares = [torch.zeros_like(routing.shares) for routing in routings]
        for expert in sorted({e for routing in routings for e in routing.experts.flatten().tolist()}):
            self._through_expert(layer, expert, normed, routings, gradients, by_normed, by_shares)
        before, by_norm_D = [], torch.zeros_like(norm_D)
        for i, x_TD in enumerate(middle):
            outputs, wanted = [normed[i], routings[i].shares], [by_normed[i], by_shares[i]]
            by_x_TD, by_weights_D = torch.autograd.grad(outputs, [x_TD, norm_D], wanted)
            before.append(gradients[i] + by_x_TD)
            by_norm_D += by_weights_D
        self.visit_norm(role, by_norm_D)
        return before

    def _through_expert(
        self,
        layer: int,
        expert: int,
        normed: Sequence[Tensor],
        routings: Sequence[Routing],
        gradients: Sequence[Tensor],
        by_normed: Sequence[Tensor],
        by_shares: Sequence[Tensor],
    ) -> None:
        """Add what comes back through one expert to ``by_normed`` and ``by_shares``, in place."""
        weights, seen = read_gated(self.graph, layer, expert=expert), _Seen(layer, expert)
        for i, routing in enumerate(routings):
            tokens_P, slots_P = torch.where(routing.experts == expert)
            if len(tokens_P) == 0:
                continue
            with torch.enable_grad():
                h_PD = normed[i].detach()[tokens_P].requires_grad_()
                shares_P = routing.shares.detach()[tokens_P, slots_P].requires_grad_()
                taped = _taped_mlp(weights)
                added_PD = taped.down_proj(gated(taped, h_PD)) * shares_P[:, None]
            by_h_PD, by_shares_P = seen.add_mlp(taped, added_PD, gradients[i][tokens_P], [h_PD, shares_P])
            by_normed[i].index_add_(0, tokens_P, by_h_PD)
            by_shares[i][tokens_P, slots_P] = by_shares_P
        seen.tell(self.visit)

    def _through_attention(
        self, layer: int, attention: AttentionWeights, states: WindowStates, gradients: Sequence[Tensor]
    ) -> list[Tensor]:
        config = self.graph.config
        before, seen, heads, by_values = [], _Seen(layer), [], []
        norms = {
            Kind.INPUT_LAYERNORM: attention.input_layernorm.requires_grad_(),
            Kind.Q_NORM: attention.q_norm.requires_grad_(),
            Kind.K_NORM: attention.k_norm.requires_grad_(),
        }
        by_norms = [torch.zeros_like(norm) for norm in norms.values()]
        for i, gradient_TD in enumerate(gradients):
            with torch.enable_grad():
                x_TD = states[i].detach().requires_grad_()
                taped = _taped_attention(attention)
                h_TD = rms_norm(x_TD, attention.input_layernorm, eps=config.rms_norm_eps)
                q_TNH, k_TKH, v_TKH = project_heads(config, taped, h_TD)
                context_TI = attend(q_TNH, k_TKH, v_TKH)
                added_TD = taped.o_proj(context_TI)
            places = [linear.tape[0][1] for linear in (taped.q_proj, taped.k_proj, taped.v_proj)]  # type: ignore[attr-defined]
            found = torch.autograd.grad(added_TD, [x_TD, *places, context_TI, *norms.values()], gradient_TD)
            before.append(gradient_TD + found[0])
            seen.add(Kind.Q_PROJ, h_TD, found[1])
            seen.add(Kind.K_PROJ, h_TD, found[2])
            by_values.append(found[3])
            seen.add(Kind.V_PROJ, h_TD, found[4])
            seen.add(Kind.O_PROJ, context_TI, gradient_TD)
            heads.append((q_TNH.detach(), k_TKH.detach()))
            for total, by_norm in zip(by_norms, found[5:], strict=True):
                total.add_(by_norm)

        def spread(index: int, error_TI: Tensor) -> Tensor:
            q_TNH, k_TKH = heads[index]
            return attend(q_TNH, k_TKH, error_TI.reshape(k_TKH.shape))

        seen.tell(self.visit, spread=spread, by_values=by_values)
        for kind, total in zip(norms, by_norms, strict=True):
            self.visit_norm(Role(kind, layer), total)
        return before


@dataclass(slots=True)
class _Seen:
    """Inputs and gradients of some weights of one layer (or of one expert), as windows pass."""

    layer: int
    expert: int | None = None
    inputs: dict[Kind, list[Tensor]] = field(default_factory=dict)
    gradients: dict[Kind, list[Tensor]] = field(default_factory=dict)

    def add(self, kind: Kind, x_TI: Tensor, gradient_TO: Tensor) -> None:
        self.inputs.setdefault(kind, []).append(x_TI.detach())
        self.gradients.setdefault(kind, []).append(gradient_TO)

    def add_mlp(
        self, taped: GatedWeights, added: Tensor, gradient: Tensor, wanted: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Go back through an MLP; returns the gradients by ``wanted``."""
        kinds = (Kind.GATE_PROJ, Kind.UP_PROJ, Kind.DOWN_PROJ)
        calls = [linear.tape[0] for linear in (taped.gate_proj, taped.up_proj, taped.down_proj)]  # type: ignore[attr-defined]
        found = torch.autograd.grad(added, [*wanted, *(y for _, y in calls)], gradient)
        for kind, (x, _), by_y in zip(kinds, calls, found[len(wanted) :], strict=True):
            self.add(kind, x, by_y)
        return found[: len(wanted)]

    def tell(
        self,
        visit: Visit,
        *,
        spread: Callable[[int, Tensor], Tensor] | None = None,
        by_values: Sequence[Tensor] | None = None,
    ) -> None:
        """Visit each weight; ``spread`` and ``by_values`` are for v_proj."""
        for kind, inputs in self.inputs.items():
            passed = Passed(inputs=inputs, gradients=self.gradients[kind])
            if kind is Kind.V_PROJ:
                passed = replace(passed, spread=spread, own_gradients=by_values)
            visit(Role(kind, self.layer, self.expert), passed)


def _leaf(weight: Weight) -> Tensor:
    """A norm's weights, of which gradients are asked for."""
    return read_tensor(weight).requires_grad_()


def _taped_mlp(weights: GatedWeights) -> GatedWeights:
    return GatedWeights(
        gate_proj=_Taped(weights.gate_proj.weight),
        up_proj=_Taped(weights.up_proj.weight),
        down_proj=_Taped(weights.down_proj.weight),
    )


def _taped_attention(weights: AttentionWeights) -> AttentionWeights:
    return AttentionWeights(
        input_layernorm=weights.input_layernorm,
        q_proj=_Taped(weights.q_proj.weight),
        k_proj=_Taped(weights.k_proj.weight),
        v_proj=_Taped(weights.v_proj.weight),
        q_norm=weights.q_norm,
        k_norm=weights.k_norm,
        o_proj=_Taped(weights.o_proj.weight),
    )
