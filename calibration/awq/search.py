"""Search for the scales of one layer that AWQ or SmoothQuant moves, so that rounding changes its output least.

AWQ gives finer steps to columns of a weight that meet large activations. SmoothQuant makes activations smaller that are
large in a few channels, and weights larger instead. Both move a scale s, one number for each channel, at one of the
places where that is exact in a Qwen3 (``quantizers.transforms``):

    awq            s = mean|x|^α                            finer steps where activations are large
    smoothquant    s = max|x|^α / max|w|^(1 - α)            activations and weights share the range between them

s is divided by its geometric mean. AWQ moves scales at every place, SmoothQuant only out of the norms, as in its paper:
the inputs of o_proj and down_proj have no channels that are always large, so that moving scales there costs the weights
more than it gains (mean KL divergence on the demo model with int8 weights and activations: 2.15e-4 with all places,
2.03e-4 with the norms only).

α is searched on a grid, place by place. Not moving anything is always one of the candidates. A candidate is judged by
the output of the whole layer against that of the fp32 layer, with the weights behind the place rounded as they will be
stored. So errors of q_proj and k_proj count as they arrive, after their norms, RoPE and softmax; QK-Norm removes a part
of them, which a loss on raw queries and keys would not show. The experts of a layer share one α, but each has its own
s, because a single expert sees too few tokens for a search of its own.

AWQ's search for clipping is not needed: formats search the window of every group by themselves, weighted with the mean
square of each column, which they are given divided by s².

Sources: AWQ (arXiv 2306.00978, section 3.2), SmoothQuant (arXiv 2211.10438, equation 4).

Shapes: # T tokens  D hidden  C in_features  K kv heads  G query heads a kv head  H head_dim
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role, Weight, module_name
from qwen3_export.quantizers.transforms import Fold, Pair, column_factors, fold, folds_of, multiplied, place_before
from qwen3_export.reference.layer import rms_norm
from qwen3_export.reference.model import run_layer
from qwen3_export.reference.probe import Probe
from qwen3_export.reference.weights import RoundActivations, read_tensor

__all__ = ["ALPHAS", "PAIRS", "Choice", "LayerScales", "Rounding", "Rule", "search_layer"]

Values = NDArray[np.float32]
Rule = Literal["awq", "smoothquant"]

Rounding = Callable[[Weight, Values | None], Weight]
"""Rounds a weight to its number format, given the importance of its columns; or returns the weight unchanged."""

ALPHAS = tuple(step / 10 for step in range(1, 11))

PAIRS: Mapping[Rule, Sequence[Pair]] = {
    "awq": (Pair.INPUT_LAYERNORM, Pair.V_PROJ, Pair.POST_ATTENTION_LAYERNORM, Pair.UP_PROJ),
    "smoothquant": (Pair.INPUT_LAYERNORM, Pair.POST_ATTENTION_LAYERNORM),
}
"""The places of a layer where a rule moves scales, in the order of the search."""

_FAINT = 1e-4
"""Smaller activations count as this share of the mean, because dead channels would give extreme scales."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The best α at one place of a layer (None: nothing is moved), and the relative squared errors of the output."""

    pair: Pair
    alpha: float | None
    error_before: float
    error_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScales:
    """``scales`` for ``transforms.fold``; ``importance`` by weight name, of columns after the scales are moved."""

    scales: Mapping[Fold, Values]
    importance: Mapping[str, Values]
    choices: Sequence[Choice]


@dataclass(slots=True)
class _Seen:
    """Sums over the inputs of one weight, column by column."""

    squares_C: Tensor
    magnitudes_C: Tensor
    largest_C: Tensor
    count: int = 0


@dataclass(slots=True)
class _Inputs:
    """Sums over the inputs of each weight of a layer, by role; filled while the reference runs."""

    seen: dict[Role, _Seen] = field(default_factory=dict)

    def observe(self, role: Role, _sequence: int, x_TC: Tensor, _shares: Tensor | None) -> None:
        x_TC = x_TC.reshape(-1, x_TC.shape[-1])
        zeros = torch.zeros(x_TC.shape[-1])
        seen = self.seen.setdefault(role, _Seen(zeros.clone(), zeros.clone(), zeros.clone()))
        seen.squares_C += x_TC.square().sum(0)
        seen.magnitudes_C += x_TC.abs().sum(0)
        seen.largest_C = torch.maximum(seen.largest_C, x_TC.abs().amax(0))
        seen.count += x_TC.shape[0]


@torch.inference_mode()
def search_layer(
    graph: Graph,
    layer: int,
    *,
    hidden: Sequence[Tensor],
    rounding: Rounding,
    rule: Rule = "awq",
    alphas: Sequence[float] = ALPHAS,
    round_activations: RoundActivations | None = None,
    judged: Sequence[int] | None = None,
    is_judged_raw: bool = False,
) -> tuple[LayerScales, list[Tensor]]:
    """The scales of one layer for these inputs [T, D], and its fp32 outputs.

    Columns are measured on all inputs, and candidates are compared on the inputs with the indices ``judged`` (None: on
    all). ``is_judged_raw`` compares q, k and v before their norms, as AWQ does for models without QK-Norm; benchmarks
    compare the two. Raises QuantizationError for an α that is not from 0 to 1.
    """
    if not all(0 <= alpha <= 1 for alpha in alphas):
        raise QuantizationError(f"`alphas` {tuple(alphas)} are not all from 0 to 1")
    inputs = _Inputs()
    exact = run_layer(graph, layer, hidden=hidden, probe=Probe(observe_inputs=inputs.observe))

    sample = range(len(hidden)) if judged is None else judged
    inputs_TD, targets_TD = [hidden[i] for i in sample], [exact[i] for i in sample]

    def error(candidate: Graph) -> float:
        outputs = run_layer(candidate, layer, hidden=inputs_TD, probe=Probe(round_activations=round_activations))
        return _relative_error(outputs, targets_TD)

    def raw_error(candidate: Graph) -> float:
        return _relative_error(_raw_heads(candidate, layer, inputs_TD), _raw_heads(graph, layer, inputs_TD))

    scales: dict[Fold, Values] = {}
    choices: list[Choice] = []
    for pair in PAIRS[rule]:
        places = [place for place in folds_of(graph.config) if place.layer == layer and place.pair is pair]
        judge = raw_error if is_judged_raw and pair is Pair.INPUT_LAYERNORM else error
        won, choice = _search_pair(graph, places, inputs, rounding=rounding, rule=rule, alphas=alphas, error=judge)
        scales |= won
        choices.append(choice)
    importance = _importance(graph, layer, inputs, scales)
    return LayerScales(scales=scales, importance=importance, choices=choices), exact


def _relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    pairs = zip(found, expected, strict=True)
    lost = sum(float((ours - theirs).double().square().sum()) for ours, theirs in pairs)
    return lost / sum(float(theirs.double().square().sum()) for theirs in expected)


def _raw_heads(graph: Graph, layer: int, hidden: Sequence[Tensor]) -> list[Tensor]:
    """q, k and v before their norms, side by side."""
    norm_D = read_tensor(graph[Role(Kind.INPUT_LAYERNORM, layer)])
    weights = torch.cat([read_tensor(graph[Role(kind, layer)]) for kind in (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ)])
    return [rms_norm(x_TD, norm_D, eps=graph.config.rms_norm_eps) @ weights.T for x_TD in hidden]


def _search_pair(
    graph: Graph,
    places: Sequence[Fold],
    inputs: _Inputs,
    *,
    rounding: Rounding,
    rule: Rule,
    alphas: Sequence[float],
    error: Callable[[Graph], float],
) -> tuple[dict[Fold, Values], Choice]:
    """The scales under the best α for places that share it; none if moving nothing is best."""

    def candidate(scales: Mapping[Fold, Values]) -> Graph:
        folded = fold(graph, scales)
        rounded = dict(folded.weights)
        for place in places:
            for role in multiplied(graph.config, place):
                if role.kind is not Kind.ROUTER:
                    rounded[module_name(role)] = rounding(folded[role], _importance_of(graph, role, inputs, scales))
        return graph.with_weights(rounded)

    best: dict[Fold, Values] = {}
    before = after = error(candidate({}))
    won: float | None = None
    for alpha in alphas:
        scales = {place: _scale(graph, place, inputs, rule=rule, alpha=alpha) for place in places}
        found = error(candidate(scales))
        if found < after:
            best, after, won = scales, found, alpha
    return best, Choice(pair=places[0].pair, alpha=won, error_before=before, error_after=after)


def _scale(graph: Graph, place: Fold, inputs: _Inputs, *, rule: Rule, alpha: float) -> Values:
    """The factors of the columns behind a place, with a geometric mean of 1."""
    roles = [role for role in multiplied(graph.config, place) if role.kind is not Kind.ROUTER]
    seen = _seen(graph.config, multiplied(graph.config, place)[0], inputs)
    measure = seen.magnitudes_C / max(seen.count, 1) if rule == "awq" else seen.largest_C
    x_C = _per_channel(graph.config, place, measure, largest=rule == "smoothquant")
    x_C = x_C.clamp_min(float(x_C.mean()) * _FAINT)
    if not bool((x_C > 0).all()):
        return np.ones(x_C.shape[0], np.float32)  # an expert that saw no token
    log_scale = alpha * x_C.log()
    if rule == "smoothquant":
        largest_C = torch.stack([torch.from_numpy(abs(graph[role].read()).max(axis=0)) for role in roles]).amax(0)
        w_C = _per_channel(graph.config, place, largest_C, largest=True)
        log_scale = log_scale - (1 - alpha) * w_C.clamp_min(float(w_C.mean()) * _FAINT).log()
    return np.asarray((log_scale - log_scale.mean()).exp().numpy(), np.float32)


def _per_channel(config: Qwen3Config, place: Fold, measure_C: Tensor, *, largest: bool) -> Tensor:
    """Turn a measure of o_proj's columns, [K · G · H], into one of value channels, [K · H]; keep others."""
    if place.pair is not Pair.V_PROJ:
        return measure_C
    measure_KGH = measure_C.reshape(config.num_key_value_heads, -1, config.head_dim)
    return (measure_KGH.amax(1) if largest else measure_KGH.mean(1)).reshape(-1)


def _seen(config: Qwen3Config, role: Role, inputs: _Inputs) -> _Seen:
    """The sums over a weight's inputs, reported under q_proj, o_proj, gate_proj (or the router) and down_proj."""
    announced = {Kind.K_PROJ: Kind.Q_PROJ, Kind.V_PROJ: Kind.Q_PROJ, Kind.UP_PROJ: Kind.GATE_PROJ}
    found = inputs.seen.get(Role(announced.get(role.kind, role.kind), role.layer, role.expert))
    if found is not None:
        return found
    if role.kind in (Kind.GATE_PROJ, Kind.UP_PROJ):  # an expert without tokens: take the inputs of all experts
        return inputs.seen[Role(Kind.ROUTER, role.layer)]
    zeros = torch.zeros(config.moe_intermediate_size)
    return _Seen(zeros, zeros, zeros)


def _importance_of(graph: Graph, role: Role, inputs: _Inputs, scales: Mapping[Fold, Values]) -> Values:
    """The mean square of the inputs of a weight's columns after scales are moved."""
    seen = _seen(graph.config, role, inputs)
    squares_C = (seen.squares_C / max(seen.count, 1)).numpy().astype(np.float32)
    place = place_before(role)
    if place not in scales:
        return squares_C
    return np.asarray(squares_C / column_factors(graph.config, place, scales[place]) ** 2, np.float32)


def _importance(graph: Graph, layer: int, inputs: _Inputs, scales: Mapping[Fold, Values]) -> dict[str, Values]:
    matrices = [weight.role for weight in graph if weight.role.layer == layer and len(weight.shape) == 2]
    return {
        module_name(role): _importance_of(graph, role, inputs, scales)
        for role in matrices
        if role.kind is not Kind.ROUTER
    }
