"""Searched scales: they pay where activations are uneven, never cost, and are the formulas of their papers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.awq.search import LayerScales, Rounding, search_layer
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role, Weight, module_name
from qwen3_export.quantizers.activations import Int8Activations
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.transforms import Fold, Pair, fold, scaled
from qwen3_export.quantizers.weights.rounded import RoundedWeight
from qwen3_export.reference.layer import rms_norm
from qwen3_export.reference.model import logits, run_layer
from qwen3_export.reference.weights import embed

THREE_BITS = AffineFormat(num_bits=3, group_size=64, search="range")
TOKENS = torch.arange(100, 148)


def plain(weight: Weight, _importance: NDArray[np.float32] | None) -> Weight:
    return RoundedWeight(source=weight, number_format=THREE_BITS)


def uneven(graph: Graph) -> Graph:
    """The same function's kin with outlier channels: a few columns of what the projections read are large."""
    random = np.random.default_rng(0)
    weights = dict(graph.weights)
    for layer in range(graph.config.num_hidden_layers):
        for kind in (Kind.INPUT_LAYERNORM, Kind.POST_ATTENTION_LAYERNORM):
            rows = np.where(random.random(graph.config.hidden_size) < 0.03, 30, 1).astype(np.float32)
            name = module_name(Role(kind, layer))
            weights[name] = scaled(graph.weights[name], rows=rows)
    return graph.with_weights(weights)


def search_all(graph: Graph, *, rounding: Rounding, **options: Any) -> LayerScales:
    """The scales of every layer."""
    hidden, found = [embed(graph, TOKENS)], []
    for layer in range(graph.config.num_hidden_layers):
        result, hidden = search_layer(graph, layer, hidden=hidden, rounding=rounding, **options)
        found.append(result)
    return LayerScales(
        scales={place: scale for result in found for place, scale in result.scales.items()},
        importance={name: vector for result in found for name, vector in result.importance.items()},
        choices=[choice for result in found for choice in result.choices],
    )


def quantized(graph: Graph, found: LayerScales, rounding: Callable[..., Weight] = plain) -> Graph:
    folded = fold(graph, found.scales)
    return folded.with_weights(
        {
            name: rounding(weight, found.importance[name]) if name in found.importance else weight
            for name, weight in folded.weights.items()
        }
    )


def error_of(ours: Tensor, exact: Tensor) -> float:
    return float((ours - exact).norm() / exact.norm())


@pytest.fixture
def graph(model_graph: Callable[[str], Graph]) -> Graph:
    return uneven(model_graph("untied"))


def test_it_pays_where_activations_are_uneven(graph: Graph) -> None:
    found = search_all(graph, rounding=plain, alphas=(0.3, 0.5, 0.7))
    assert len(found.choices) == 4 * graph.config.num_hidden_layers
    for choice in found.choices:
        assert choice.error_after <= choice.error_before
        assert (choice.alpha is None) == (choice.error_after == choice.error_before)
        if choice.pair in (Pair.INPUT_LAYERNORM, Pair.POST_ATTENTION_LAYERNORM):
            assert choice.error_after < 0.8 * choice.error_before
    exact = logits(graph, TOKENS)
    assert error_of(logits(fold(graph, found.scales), TOKENS), exact) < 1e-4
    before = LayerScales(scales={}, importance=found.importance, choices=())
    held_out = torch.arange(3000, 3040)
    for tokens in (TOKENS, held_out):
        reached = error_of(logits(quantized(graph, found), tokens), logits(graph, tokens))
        assert reached < 0.9 * error_of(logits(quantized(graph, before), tokens), logits(graph, tokens))


def test_nothing_moves_where_nothing_is_rounded(graph: Graph) -> None:
    found, hidden = search_layer(
        graph, 0, hidden=[embed(graph, TOKENS)], rounding=lambda weight, _: weight, alphas=(0.5,)
    )
    assert all(choice.alpha is None or choice.error_before < 1e-10 for choice in found.choices)
    torch.testing.assert_close(hidden[0], run_layer(graph, 0, hidden=[embed(graph, TOKENS)])[0])


def test_scales_are_the_paper_s(graph: Graph) -> None:
    x_TD = embed(graph, TOKENS)
    norm = torch.from_numpy(graph[Role(Kind.INPUT_LAYERNORM, 0)].read())
    h_TD = rms_norm(x_TD, norm, eps=graph.config.rms_norm_eps)
    place = Fold(Pair.INPUT_LAYERNORM, 0)
    found, _ = search_layer(graph, 0, hidden=[x_TD], rounding=plain, alphas=(0.5,))
    expected = h_TD.abs().mean(0) ** 0.5
    np.testing.assert_allclose(found.scales[place], expected / expected.log().mean().exp(), rtol=1e-4)
    q_proj = graph[Role(Kind.Q_PROJ, 0)]
    mean_square = (h_TD**2).mean(0).numpy() / found.scales[place] ** 2
    np.testing.assert_allclose(found.importance[q_proj.name], mean_square, rtol=1e-4)

    found, _ = search_layer(
        graph,
        0,
        hidden=[x_TD],
        rounding=lambda weight, _: RoundedWeight(source=weight, number_format=AffineFormat(num_bits=8)),
        rule="smoothquant",
        alphas=(0.5,),
        round_activations=Int8Activations().round,
    )
    kinds = (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ)
    weights = torch.cat([torch.from_numpy(graph[Role(kind, 0)].read()) for kind in kinds])
    expected = h_TD.abs().amax(0) ** 0.5 / weights.abs().amax(0) ** 0.5
    np.testing.assert_allclose(found.scales[place], expected / expected.log().mean().exp(), rtol=1e-4)


def test_a_head_s_size_counts_only_before_its_norm(graph: Graph) -> None:
    """RMSNorm takes a factor of a head's rows out again; a loss on raw queries follows the head that is largest."""
    q_proj = graph[Role(Kind.Q_PROJ, 0)]
    factors = np.ones(q_proj.shape[0], np.float32)
    factors[: graph.config.head_dim] = 64.0
    scaled_up = graph.with_weights(dict(graph.weights) | {q_proj.name: scaled(q_proj, rows=factors)})

    def errors(which: Graph, *, is_judged_raw: bool) -> list[float]:
        found, _ = search_layer(
            which, 0, hidden=[embed(which, TOKENS)], rounding=plain, alphas=(0.5,), is_judged_raw=is_judged_raw
        )
        return [found.choices[0].error_before, found.choices[0].error_after]

    assert errors(scaled_up, is_judged_raw=False) == pytest.approx(errors(graph, is_judged_raw=False), rel=1e-3)
    assert errors(scaled_up, is_judged_raw=True) != pytest.approx(errors(graph, is_judged_raw=True), rel=1e-2)


def test_smoothquant_pays_with_int8_activations(graph: Graph) -> None:
    def eight_bits(weight: Weight, _importance: NDArray[np.float32] | None) -> Weight:
        return RoundedWeight(source=weight, number_format=AffineFormat(num_bits=8, search="range"))

    activations = Int8Activations().round
    found = search_all(graph, rounding=eight_bits, rule="smoothquant", alphas=(0.5, 0.8), round_activations=activations)
    assert {place.pair for place in found.scales} == {Pair.INPUT_LAYERNORM, Pair.POST_ATTENTION_LAYERNORM}
    before = LayerScales(scales={}, importance=found.importance, choices=())
    exact = logits(graph, TOKENS)
    smooth = logits(quantized(graph, found, eight_bits), TOKENS, round_activations=activations)
    rough = logits(quantized(graph, before, eight_bits), TOKENS, round_activations=activations)
    assert error_of(smooth, exact) < 0.8 * error_of(rough, exact)


def test_experts_and_any_format(model_graph: Callable[[str], Graph]) -> None:
    """A MoE layer with an expert that no token goes to, into GGML's blocks."""
    graph = model_graph("moe_cold").truncated(0, 1)
    blocks = GGML_FORMATS["Q4_0"]

    def as_blocks(weight: Weight, importance: NDArray[np.float32] | None) -> Weight:
        return RoundedWeight(source=weight, number_format=blocks, importance=importance)

    found, _ = search_layer(graph, 0, hidden=[embed(graph, TOKENS)], rounding=as_blocks, alphas=(0.5,))
    assert all(np.isfinite(scale).all() and (scale > 0).all() for scale in found.scales.values())
    assert len(found.importance) == 4 + 3 * graph.config.num_experts
    assert error_of(logits(fold(graph, found.scales), TOKENS), logits(graph, TOKENS)) < 1e-4


def test_refusals(graph: Graph) -> None:
    with pytest.raises(QuantizationError, match="alphas"):
        search_layer(graph, 0, hidden=[embed(graph, TOKENS)], rounding=plain, alphas=(2.0,))
