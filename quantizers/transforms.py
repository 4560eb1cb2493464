"""Scales that can be moved between the weights of a Qwen3 layer without changing what the model computes.

Rows and columns of a weight differ much in size. AWQ and SmoothQuant move these differences to where they cost less
when weights are rounded. Which moves are exact depends on the architecture, and QK-Norm changes it:

    input_layernorm / s             columns of q_proj, k_proj, v_proj × s
    post_attention_layernorm / s    columns of gate_proj, up_proj × s, of all experts, and of the router
    v_proj rows / s                 columns of o_proj × s, repeated over the query heads that share a value head
    up_proj rows / s                columns of down_proj × s, expert by expert
    k_norm / s                      q_norm × s, with s equal in both halves of each pair that RoPE rotates

These moves are not exact, although some are in other models: scales between q_proj and k_proj (both are normed in
between); q_proj rows against q_norm (the norm's mean square changes from token to token); gate_proj against down_proj
(SiLU is between them); q_norm against k_norm with different scales in a pair (RoPE mixes the two); the final norm
against a tied head (the embedding would change too); post_attention_layernorm without the router (other experts would
be chosen). The tests show that each of these changes the model.

Nothing is computed until a weight is read.
Source of the idea: AWQ (arXiv 2306.00978), SmoothQuant (arXiv 2211.10438). The table for QK-Norm is ours.

Shapes: # D hidden  K kv heads  H head_dim  I intermediate  O out_features  C in_features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Role, Weight, module_name

__all__ = [
    "Fold",
    "Pair",
    "ScaledWeight",
    "column_factors",
    "divided",
    "fold",
    "folds_of",
    "multiplied",
    "parse_place",
    "place_before",
    "place_text",
    "scale_length",
    "scaled",
]

Values = NDArray[np.float32]


class Pair(str, Enum):
    """The weight that a scale is taken from; the weights that it goes to follow from that."""

    INPUT_LAYERNORM = "input_layernorm"
    POST_ATTENTION_LAYERNORM = "post_attention_layernorm"
    V_PROJ = "v_proj"
    UP_PROJ = "up_proj"
    K_NORM = "k_norm"


_DIVIDED: Mapping[Pair, Kind] = MappingProxyType({pair: Kind(pair.value) for pair in Pair})

_MULTIPLIED: Mapping[Pair, tuple[Kind, ...]] = MappingProxyType(
    {
        Pair.INPUT_LAYERNORM: (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ),
        Pair.POST_ATTENTION_LAYERNORM: (Kind.GATE_PROJ, Kind.UP_PROJ),
        Pair.V_PROJ: (Kind.O_PROJ,),
        Pair.UP_PROJ: (Kind.DOWN_PROJ,),
        Pair.K_NORM: (Kind.Q_NORM,),
    }
)

_BEFORE: Mapping[Kind, Pair] = MappingProxyType(
    {kind: pair for pair, kinds in _MULTIPLIED.items() for kind in kinds if pair is not Pair.K_NORM}
)


@dataclass(frozen=True, slots=True)
class Fold:
    """One place where a scale can be moved; ``expert`` is set for ``up_proj`` of an expert only."""

    pair: Pair
    layer: int
    expert: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledWeight(DerivedWeight):
    """A weight whose rows and columns are multiplied when it is read, by 1 where a factor is None.

    Vectors have rows only.
    """

    rows_O: Values | None = None
    columns_C: Values | None = None

    @property
    def format(self) -> str:
        return "F32"

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The scaled values of a block of rows, fp32."""
        values = self.source.read(rows)
        if self.rows_O is not None:
            factors = self.rows_O[rows]
            values = values * (factors if values.ndim == 1 else factors[:, None])
        return values if self.columns_C is None else values * self.columns_C


def fold(graph: Graph, scales: Mapping[Fold, Values]) -> Graph:
    """The graph with each scale moved: other weights that compute the same function.

    Raises QuantizationError for a place that the model lacks, and for a scale that is not of ``scale_length`` or holds
    a number that is not positive and finite.
    """
    weights = dict(graph.weights)
    for place, scale in scales.items():
        _check(graph.config, place, scale)
        for role in divided(graph.config, place):
            weights[module_name(role)] = scaled(weights[module_name(role)], rows=np.float32(1) / _as_rows(place, scale))
        for role in multiplied(graph.config, place):
            name = module_name(role)
            if place.pair is Pair.K_NORM:
                weights[name] = scaled(weights[name], rows=_as_rows(place, scale))
            else:
                weights[name] = scaled(weights[name], columns=column_factors(graph.config, place, scale))
    return graph.with_weights(weights)


def place_text(place: Fold) -> str:
    """The name of a place in metadata: ``input_layernorm.3``, ``up_proj.3.17`` (layer 3, expert 17)."""
    expert = "" if place.expert is None else f".{place.expert}"
    return f"{place.pair.value}.{place.layer}{expert}"


def parse_place(text: str) -> Fold:
    """The inverse of ``place_text``; ValueError for another text."""
    pair, layer, *expert = text.split(".")
    return Fold(Pair(pair), int(layer), int(expert[0]) if expert else None)


def scaled(weight: Weight, *, rows: Values | None = None, columns: Values | None = None) -> ScaledWeight:
    """A weight with rows and columns multiplied; if it is scaled already, the scales are multiplied."""
    source = weight
    if isinstance(weight, ScaledWeight):
        source, rows, columns = weight.source, _product(weight.rows_O, rows), _product(weight.columns_C, columns)
    return ScaledWeight(source=source, rows_O=rows, columns_C=columns)


def folds_of(config: Qwen3Config) -> list[Fold]:
    """Every place of a model, in the order of a forward pass."""
    places: list[Fold] = []
    for layer in range(config.num_hidden_layers):
        places += [Fold(pair, layer) for pair in (Pair.INPUT_LAYERNORM, Pair.K_NORM, Pair.V_PROJ)]
        places.append(Fold(Pair.POST_ATTENTION_LAYERNORM, layer))
        places += [Fold(Pair.UP_PROJ, layer, expert) for expert in _experts(config, layer)]
    return places


def divided(config: Qwen3Config, place: Fold) -> list[Role]:
    """The weights whose rows are divided: always one."""
    _check_place(config, place)
    return [Role(_DIVIDED[place.pair], place.layer, place.expert)]


def multiplied(config: Qwen3Config, place: Fold) -> list[Role]:
    """The weights whose columns (q_norm: whose values) are multiplied, every expert and the router included."""
    _check_place(config, place)
    kinds = _MULTIPLIED[place.pair]
    if place.pair is not Pair.POST_ATTENTION_LAYERNORM:
        return [Role(kind, place.layer, place.expert) for kind in kinds]
    experts = _experts(config, place.layer)
    roles = [Role(kind, place.layer, expert) for expert in experts for kind in kinds]
    return [Role(Kind.ROUTER, place.layer), *roles] if config.is_sparse_layer(place.layer) else roles


def scale_length(config: Qwen3Config, place: Fold) -> int:
    """How many numbers a scale has; for k_norm one for each pair that RoPE rotates, half of head_dim."""
    if place.pair is Pair.V_PROJ:
        return config.num_key_value_heads * config.head_dim
    if place.pair is Pair.K_NORM:
        return config.head_dim // 2
    if place.pair is Pair.UP_PROJ:
        return config.intermediate_size if place.expert is None else config.moe_intermediate_size
    return config.hidden_size


def place_before(role: Role) -> Fold:
    """The place whose scale multiplies the columns of a matrix; KeyError for a role that has none."""
    pair = _BEFORE[role.kind]
    assert role.layer is not None
    return Fold(pair, role.layer, role.expert if pair is Pair.UP_PROJ else None)


def column_factors(config: Qwen3Config, place: Fold, scale: Values) -> Values:
    """The factors of columns for a scale; o_proj has those of a value head once for each query head that reads it."""
    if place.pair is not Pair.V_PROJ:
        return scale
    heads_per_kv = config.num_attention_heads // config.num_key_value_heads
    scale_KH = scale.reshape(config.num_key_value_heads, config.head_dim)
    return np.repeat(scale_KH, heads_per_kv, axis=0).reshape(-1)


def _as_rows(place: Fold, scale: Values) -> Values:
    return np.tile(scale, 2) if place.pair is Pair.K_NORM else scale


def _experts(config: Qwen3Config, layer: int) -> list[int | None]:
    return list(range(config.num_experts)) if config.is_sparse_layer(layer) else [None]


def _check(config: Qwen3Config, place: Fold, scale: Values) -> None:
    _check_place(config, place)
    length = scale_length(config, place)
    where = f"{place.pair.value} of layer {place.layer}"
    if scale.shape != (length,):
        raise QuantizationError(f"{where}: a scale of shape {scale.shape} where {length} numbers are needed")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise QuantizationError(f"{where}: its scale holds a number that is not positive and finite")


def _check_place(config: Qwen3Config, place: Fold) -> None:
    layers = config.num_hidden_layers
    known = 0 <= place.layer < layers
    if known and place.pair is Pair.UP_PROJ:
        known = place.expert in _experts(config, place.layer)
    elif known:
        known = place.expert is None
    if not known:
        raise QuantizationError(
            f"this model has no {place.pair.value} in layer {place.layer}, expert {place.expert}, of {layers} layers"
        )


def _product(a: Values | None, b: Values | None) -> Values | None:
    if a is None or b is None:
        return b if a is None else a
    return a * b
