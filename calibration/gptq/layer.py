"""Solve the weights of one layer in a sequential GPTQ run, beside the fp32 model.

Two residual streams pass through the model side by side: ``exact`` through the checkpoint's weights, ``stream`` through
the quantized weights. In each layer the weights are solved in the order of the forward pass: q, k and v; then o; then
gate and up; then down ("true sequential"). Each is solved for the inputs that the quantized weights before it give, and
for the outputs of the fp32 model.

Shapes: T tokens of one window, D hidden, N heads, K kv heads, H head_dim, I in
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qwen3_export.calibration.gptq.run import GptqRun
from qwen3_export.calibration.moments import MomentSums, RelativeError, norm_weights
from qwen3_export.calibration.window_states import WindowStates
from qwen3_export.graph import Kind, Role
from qwen3_export.reference.layer import attend, gated, project_heads, rms_norm
from qwen3_export.reference.weights import AttentionWeights, GatedWeights, Linear, read_tensor

__all__ = ["Streams", "run_attention", "run_dense_mlp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """The residual stream of every window in both models; it is changed in place."""

    stream: WindowStates
    exact: WindowStates

    def normed(self, index: int, norm_D: Tensor, *, eps: float) -> tuple[Tensor, Tensor]:
        """One window after a norm: in the quantized model, and in the fp32 model."""
        return rms_norm(self.stream[index], norm_D, eps=eps), rms_norm(self.exact[index], norm_D, eps=eps)

    def lost(self, index: int) -> Tensor:
        """The error of the quantized stream, [T, D]."""
        return self.exact[index] - self.stream[index]


def run_attention(run: GptqRun, layer: int, streams: Streams) -> None:
    """Solve q, k, v and o, and pass both streams through them."""
    norm_D = read_tensor(run.graph[Role(Kind.INPUT_LAYERNORM, layer)])
    _solve_qkv(run, layer, streams, norm_D)
    run.advance()
    contexts = _solve_o(run, layer, streams, norm_D)
    _add(streams.stream, contexts, run.quantized(Kind.O_PROJ, layer))
    run.advance()


def run_dense_mlp(run: GptqRun, layer: int, streams: Streams) -> None:
    """Solve gate, up and down of a dense layer, and pass both streams through them."""
    norm_D, eps = read_tensor(run.graph[Role(Kind.POST_ATTENTION_LAYERNORM, layer)]), run.graph.config.rms_norm_eps
    roles = [Role(kind, layer) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ)]
    if run.needs(*roles):
        sums = MomentSums(len(norm_D))
        for i in range(len(run.lengths)):
            sums.add(*streams.normed(i, norm_D, eps=eps))
        run.solve(roles, [sums])
    run.advance()
    inners = _solve_down(run, layer, streams, norm_D)
    _add(streams.stream, inners, run.quantized(Kind.DOWN_PROJ, layer))
    run.advance()


def _solve_qkv(run: GptqRun, layer: int, streams: Streams, norm_D: Tensor) -> None:
    q, k, _ = roles = [Role(kind, layer) for kind in (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ)]
    if not run.needs(*roles):
        return
    config, hidden = run.graph.config, len(norm_D)
    mode = run.settings.qk_norm
    groups = config.num_key_value_heads if mode == "grouped" else 1
    sums = MomentSums(hidden)
    weighted = {} if mode == "off" else {role: [MomentSums(hidden) for _ in range(groups)] for role in (q, k)}
    projections = {role: run.exact(role.kind, layer) for role in weighted}
    for i in range(len(run.lengths)):
        h_TD, exact_TD = streams.normed(i, norm_D, eps=config.rms_norm_eps)
        sums.add(h_TD, exact_TD)
        for role, parts in weighted.items():
            heads_TNH = projections[role](exact_TD).view(len(h_TD), -1, config.head_dim)
            weight_GT = norm_weights(heads_TNH, groups=groups, eps=config.rms_norm_eps)
            for part, weight_T in zip(parts, weight_GT, strict=True):
                part.add(h_TD, exact_TD, weight_P=weight_T)
    for role, parts in weighted.items():
        run.solve([role], parts)
    run.solve(roles, [sums])


def _solve_o(run: GptqRun, layer: int, streams: Streams, norm_D: Tensor) -> WindowStates:
    """Solve o_proj and pass the exact stream through it; returns the inputs for the quantized o_proj.

    On the way, q and k of both models are compared after their norms and RoPE, which changes no distance.
    """
    config, role = run.graph.config, Role(Kind.O_PROJ, layer)
    columns = run.graph[role].shape[1]
    sums = MomentSums(columns, residual_size=len(norm_D), has_cross=False)
    contexts, errors = run.states(columns), {Kind.Q_PROJ: RelativeError(), Kind.K_PROJ: RelativeError()}
    exact, quantized = _attention_weights(run, layer, norm_D), _attention_weights(run, layer, norm_D, quantized=True)
    is_needed = run.needs(role)
    for i in range(len(run.lengths)):
        h_TD, exact_TD = streams.normed(i, norm_D, eps=config.rms_norm_eps)
        heads, exact_heads = project_heads(config, quantized, h_TD), project_heads(config, exact, exact_TD)
        for error, found, wanted in zip(errors.values(), heads, exact_heads, strict=False):
            error.add(found, wanted)
        context_TI, added_TD = attend(*heads), exact.o_proj(attend(*exact_heads))
        if is_needed:
            sums.add(context_TI, residual_PO=_missing(run, streams, i, exact.o_proj(context_TI), added_TD))
        contexts[i] = context_TI
        streams.exact[i] = streams.exact[i] + added_TD
    for kind, error in errors.items():
        run.report_normed_error(Role(kind, layer), error.share)
    run.solve([role], [sums])
    return contexts


def _solve_down(run: GptqRun, layer: int, streams: Streams, norm_D: Tensor) -> WindowStates:
    """Solve down_proj and pass the exact stream through it; returns the inputs for the quantized down_proj."""
    role = Role(Kind.DOWN_PROJ, layer)
    columns = run.graph[role].shape[1]
    sums = MomentSums(columns, residual_size=len(norm_D), has_cross=False)
    inners = run.states(columns)
    exact, quantized = gated_weights(run, layer), gated_weights(run, layer, quantized=True)
    is_needed = run.needs(role)
    for i in range(len(run.lengths)):
        h_TD, exact_TD = streams.normed(i, norm_D, eps=run.graph.config.rms_norm_eps)
        inner_TI, added_TD = gated(quantized, h_TD), exact.down_proj(gated(exact, exact_TD))
        if is_needed:
            sums.add(inner_TI, residual_PO=_missing(run, streams, i, exact.down_proj(inner_TI), added_TD))
        inners[i] = inner_TI
        streams.exact[i] = streams.exact[i] + added_TD
    run.solve([role], [sums])
    return inners


def _missing(run: GptqRun, streams: Streams, index: int, given_TD: Tensor, added_TD: Tensor) -> Tensor:
    """The error that o_proj or down_proj should make up for, [T, D]: W (x₀ - x) + r.

    W is the checkpoint's weight, x are the quantized model's inputs, x₀ the fp32 model's, r is the error of the
    residual stream. Summing this is cheaper than cross moments of inputs that are wider than D.
    """
    missing_TD = added_TD - given_TD
    return missing_TD + streams.lost(index) if run.settings.take_back_residual else missing_TD


def gated_weights(run: GptqRun, layer: int, *, expert: int | None = None, quantized: bool = False) -> GatedWeights:
    """A gated MLP; down_proj is always the checkpoint's, because the quantized one is not solved yet."""
    read = run.quantized if quantized else run.exact
    return GatedWeights(
        gate_proj=read(Kind.GATE_PROJ, layer, expert),
        up_proj=read(Kind.UP_PROJ, layer, expert),
        down_proj=run.exact(Kind.DOWN_PROJ, layer, expert),
    )


def _attention_weights(run: GptqRun, layer: int, norm_D: Tensor, *, quantized: bool = False) -> AttentionWeights:
    """The attention of one layer; o_proj is always the checkpoint's."""
    read = run.quantized if quantized else run.exact
    return AttentionWeights(
        input_layernorm=norm_D,
        q_proj=read(Kind.Q_PROJ, layer),
        k_proj=read(Kind.K_PROJ, layer),
        v_proj=read(Kind.V_PROJ, layer),
        q_norm=read_tensor(run.graph[Role(Kind.Q_NORM, layer)]),
        k_norm=read_tensor(run.graph[Role(Kind.K_NORM, layer)]),
        o_proj=run.exact(Kind.O_PROJ, layer),
    )


def _add(stream: WindowStates, inputs: WindowStates, linear: Linear) -> None:
    """Add a matrix's outputs to the stream, and free its inputs."""
    for i in range(len(stream)):
        stream[i] = stream[i] + linear(inputs[i])
    inputs.close()
