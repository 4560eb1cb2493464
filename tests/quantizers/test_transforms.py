"""Moved scales: the exact ones are exact; those that QK-Norm, SiLU, RoPE or a router forbid are seen to be wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from models import DENSE
from torch import Tensor

from qwen3_export.config import parse_config
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role, Weight, module_name
from qwen3_export.quantizers.transforms import Fold, Pair, divided, fold, folds_of, multiplied, scale_length, scaled
from qwen3_export.reference.model import logits

TOKENS = torch.tensor([11, 4095, 77, 13, 13, 8000, 256])
EXACT = 2e-5  # fp32 sums in another order, two layers deep
MODELS = ("rows_of_72", "moe", "yarn")


def some_scale(length: int, *, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).normal(0, 0.7, length)).astype(np.float32)


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).abs().max() / exact.abs().max())


def changed(graph: Graph, weights: Mapping[Role, Weight]) -> Graph:
    named = {module_name(role): weight for role, weight in weights.items()}
    return graph.with_weights({**graph.weights, **named})


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pair", list(Pair))
def test_each_fold_is_exact(pair: Pair, name: str, model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph(name)
    scales = {
        place: some_scale(scale_length(graph.config, place), seed=i)
        for i, place in enumerate(folds_of(graph.config))
        if place.pair is pair
    }
    assert scales
    folded = fold(graph, scales)
    assert relative(logits(folded, TOKENS), logits(graph, TOKENS)) < EXACT
    first = next(iter(scales))
    for role in multiplied(graph.config, first):
        assert not np.array_equal(folded[role].read(), graph[role].read())


@pytest.mark.parametrize("name", ["rows_of_72", "moe"])
def test_all_folds_at_once_and_twice_are_exact(name: str, model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph(name)
    folded = graph
    for seed in (0, 100):
        folded = fold(
            folded,
            {p: some_scale(scale_length(graph.config, p), seed=seed + i) for i, p in enumerate(folds_of(graph.config))},
        )
    assert relative(logits(folded, TOKENS), logits(graph, TOKENS)) < 3 * EXACT


def test_folding_back_gives_the_same_weights(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    scale = np.exp2(np.arange(256) % 5).astype(np.float32)  # powers of two change no digit
    place = Fold(Pair.INPUT_LAYERNORM, 1)
    back = fold(fold(graph, {place: scale}), {place: 1 / scale})
    for weight in graph:
        np.testing.assert_array_equal(back.weights[weight.name].read(), weight.read())


def test_blocks_of_rows_are_scaled_alike(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    for role in (Role(Kind.V_PROJ, 0), Role(Kind.K_NORM, 0)):
        weight = graph[role]
        columns = some_scale(weight.shape[1]) if len(weight.shape) == 2 else None
        whole = scaled(weight, rows=some_scale(weight.shape[0]), columns=columns)
        assert (whole.name, whole.role, whole.shape, whole.format) == (weight.name, role, weight.shape, "F32")
        np.testing.assert_array_equal(whole.read(slice(7, 19)), whole.read()[7:19])


def q_rows_against_q_norm(graph: Graph) -> Graph:
    config, layer = graph.config, 0
    scale = some_scale(config.head_dim)
    q_proj, q_norm = Role(Kind.Q_PROJ, layer), Role(Kind.Q_NORM, layer)
    rows = np.tile(scale, config.num_attention_heads)
    return changed(graph, {q_proj: scaled(graph[q_proj], rows=rows), q_norm: scaled(graph[q_norm], rows=1 / scale)})


def q_rows_against_k_rows(graph: Graph) -> Graph:
    config = graph.config
    scale = some_scale(config.head_dim)
    q_proj, k_proj = Role(Kind.Q_PROJ, 0), Role(Kind.K_PROJ, 0)
    q_rows, k_rows = np.tile(1 / scale, config.num_attention_heads), np.tile(scale, config.num_key_value_heads)
    return changed(graph, {q_proj: scaled(graph[q_proj], rows=q_rows), k_proj: scaled(graph[k_proj], rows=k_rows)})


def norms_with_unequal_pairs(graph: Graph) -> Graph:
    scale = some_scale(graph.config.head_dim)
    q_norm, k_norm = Role(Kind.Q_NORM, 0), Role(Kind.K_NORM, 0)
    return changed(graph, {q_norm: scaled(graph[q_norm], rows=scale), k_norm: scaled(graph[k_norm], rows=1 / scale)})


def norms_with_neighbours_as_pairs(graph: Graph) -> Graph:
    scale = np.repeat(some_scale(graph.config.head_dim // 2), 2)
    q_norm, k_norm = Role(Kind.Q_NORM, 0), Role(Kind.K_NORM, 0)
    return changed(graph, {q_norm: scaled(graph[q_norm], rows=scale), k_norm: scaled(graph[k_norm], rows=1 / scale)})


def gate_against_down(graph: Graph) -> Graph:
    scale = some_scale(graph.config.intermediate_size)
    gate, down = Role(Kind.GATE_PROJ, 0), Role(Kind.DOWN_PROJ, 0)
    return changed(graph, {gate: scaled(graph[gate], rows=1 / scale), down: scaled(graph[down], columns=scale)})


def v_against_o_with_heads_interleaved(graph: Graph) -> Graph:
    config = graph.config
    scale = some_scale(config.num_key_value_heads * config.head_dim)
    v_proj, o_proj = Role(Kind.V_PROJ, 0), Role(Kind.O_PROJ, 0)
    columns = np.tile(scale, config.num_attention_heads // config.num_key_value_heads)
    return changed(
        graph, {v_proj: scaled(graph[v_proj], rows=1 / scale), o_proj: scaled(graph[o_proj], columns=columns)}
    )


def final_norm_against_tied_head(graph: Graph) -> Graph:
    scale = some_scale(graph.config.hidden_size)
    norm, embedding = Role(Kind.NORM), Role(Kind.EMBED_TOKENS)
    return changed(
        graph, {norm: scaled(graph[norm], rows=1 / scale), embedding: scaled(graph[embedding], columns=scale)}
    )


WRONG = {
    function.__name__: function
    for function in (
        q_rows_against_q_norm,
        q_rows_against_k_rows,
        norms_with_unequal_pairs,
        norms_with_neighbours_as_pairs,
        gate_against_down,
        v_against_o_with_heads_interleaved,
        final_norm_against_tied_head,
    )
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_free_is_seen(name: str, model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    assert relative(logits(WRONG[name](graph), TOKENS), logits(graph, TOKENS)) > 1000 * EXACT


def test_forgetting_the_router_is_seen(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("moe")
    place = Fold(Pair.POST_ATTENTION_LAYERNORM, 0)
    router = Role(Kind.ROUTER, 0)
    assert multiplied(graph.config, place)[0] == router
    forgetful = fold(graph, {place: some_scale(graph.config.hidden_size)})
    forgetful = changed(forgetful, {router: graph[router]})
    assert relative(logits(forgetful, TOKENS), logits(graph, TOKENS)) > 1000 * EXACT


@pytest.mark.parametrize("factor", [0.1, 3.0, 100.0])
def test_one_factor_a_head_is_free_before_the_norm(factor: float, model_graph: Callable[[str], Graph]) -> None:
    """All rows of one query head times one positive number: RMSNorm takes it out again, but for its eps."""
    graph = model_graph("tied")
    q_proj = Role(Kind.Q_PROJ, 0)
    rows = np.ones(graph[q_proj].shape[0], np.float32)
    rows[64:128] = factor
    freed = changed(graph, {q_proj: scaled(graph[q_proj], rows=rows)})
    assert relative(logits(freed, TOKENS), logits(graph, TOKENS)) < 1e-3


def test_refusals_say_where() -> None:
    config = parse_config(DENSE)
    assert divided(config, Fold(Pair.V_PROJ, 1)) == [Role(Kind.V_PROJ, 1)]
    for place in (Fold(Pair.V_PROJ, 2), Fold(Pair.UP_PROJ, 0, 3), Fold(Pair.K_NORM, 0, 0)):
        with pytest.raises(QuantizationError, match="this model has no"):
            divided(config, place)


@pytest.mark.parametrize(
    ("scale", "message"),
    [(np.ones(3), "of shape"), (np.zeros(256), "not positive"), (np.full(256, np.nan), "not positive")],
)
def test_bad_scales_are_refused(scale: np.ndarray, message: str, model_graph: Callable[[str], Graph]) -> None:
    with pytest.raises(QuantizationError, match=f"input_layernorm of layer 1.*{message}"):
        fold(model_graph("tied"), {Fold(Pair.INPUT_LAYERNORM, 1): scale.astype(np.float32)})
