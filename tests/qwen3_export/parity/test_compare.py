"""The target-independent comparison, with the reference itself playing the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch
from tokens import random_tokens

from qwen3_export.graph import ALL_ROWS, Graph, Kind, Role, Weight
from qwen3_export.parity import compare as compare_module
from qwen3_export.parity.compare import (
    Arithmetic,
    cache_difference,
    compare_exact,
    compare_shipped,
    decided_parts,
    decode_difference,
    first_divergence,
    reference_states,
)
from qwen3_export.reference.model import KVCache, Place, Site, forward, logits


class Scaled:
    """A weight times a factor."""

    def __init__(self, weight: Weight, factor: float) -> None:
        self.name, self.role, self.shape, self.format = weight.name, weight.role, weight.shape, weight.format
        self._weight, self._factor = weight, np.float32(factor)

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self._weight.read(rows) * self._factor


@pytest.fixture(scope="module")
def graph(model_graph: Callable[[str], Graph]) -> Graph:
    return model_graph("tied")


@pytest.fixture(scope="module")
def texts() -> list[list[int]]:
    return [random_tokens(length, seed=length).tolist() for length in (7, 12, 3)]


def changed(graph: Graph, kind: Kind, layer: int, factor: float) -> Graph:
    weight = graph[Role(kind, layer)]
    return graph.with_weights({**graph.weights, weight.name: Scaled(weight, factor)})


def runtime_of(graph: Graph) -> Callable[[Sequence[int]], np.ndarray]:
    return lambda tokens: logits(graph, torch.tensor(tokens)).numpy()


@pytest.mark.parametrize("positions_held", [1, 4, 1000])
def test_the_same_model_is_no_distance_away(
    graph: Graph, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch, positions_held: int
) -> None:
    monkeypatch.setattr(compare_module, "LOGITS_HELD", positions_held * graph.config.vocab_size)
    numbers = compare_exact(graph, texts, runtime_of(graph))
    assert numbers.mean_kld == pytest.approx(0.0, abs=1e-11)
    assert numbers.same_top1 == 1.0
    assert numbers.perplexity_ratio == pytest.approx(1.0, abs=1e-5)


def test_the_numbers_do_not_depend_on_what_is_held(
    graph: Graph, texts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = changed(graph, Kind.V_PROJ, 1, 1.1)
    whole = compare_shipped(graph, stored, texts, run=runtime_of(stored))
    monkeypatch.setattr(compare_module, "LOGITS_HELD", 5 * graph.config.vocab_size)
    parts = compare_shipped(graph, stored, texts, run=runtime_of(stored))
    assert parts.quantization.mean_kld == pytest.approx(whole.quantization.mean_kld, rel=1e-6)
    assert parts.end_to_end.perplexity_ratio == pytest.approx(whole.end_to_end.perplexity_ratio, rel=1e-6)


def test_each_number_compares_what_it_says(graph: Graph, texts: list[list[int]]) -> None:
    """The stored values differ from the original, the runtime from both."""
    stored, shipped = changed(graph, Kind.V_PROJ, 1, 1.1), changed(graph, Kind.V_PROJ, 1, 1.2)
    numbers = compare_shipped(graph, stored, texts, run=runtime_of(shipped))
    pairs = [
        (numbers.quantization, compare_exact(graph, texts, runtime_of(stored))),
        (numbers.shipped, compare_exact(stored, texts, runtime_of(shipped))),
        (numbers.end_to_end, compare_exact(graph, texts, runtime_of(shipped))),
    ]
    for found, expected in pairs:
        assert found.mean_kld == pytest.approx(expected.mean_kld, rel=1e-5)
        assert found.max_abs == pytest.approx(expected.max_abs, rel=1e-4)
    assert len({found.mean_kld for found, _ in pairs}) == 3
    assert numbers.floor.mean_kld is None


def test_the_floor_is_the_modelled_arithmetic(graph: Graph, texts: list[list[int]]) -> None:
    coarse = Arithmetic(round_activations=lambda x_TI, _weight: x_TI.bfloat16().float())

    def run(tokens: Sequence[int]) -> np.ndarray:
        return logits(graph, torch.tensor(tokens), round_activations=coarse.round_activations).numpy()

    numbers = compare_shipped(graph, graph, texts, run=run, arithmetic=coarse)
    assert numbers.floor.mean_kld > 1e-7
    assert numbers.shipped.mean_kld == pytest.approx(numbers.floor.mean_kld, rel=0.1)


def test_without_a_runtime_the_stored_values_are_still_judged(graph: Graph, texts: list[list[int]]) -> None:
    numbers = compare_shipped(graph, changed(graph, Kind.V_PROJ, 1, 1.1), texts, run=None)
    assert numbers.quantization.mean_kld > 1e-5
    assert numbers.shipped.mean_kld is None
    assert numbers.end_to_end.mean_kld is None


def test_decode_difference_finds_a_chunk_that_is_off(graph: Graph) -> None:
    whole = runtime_of(graph)(random_tokens(10).tolist())

    def run(tokens: Sequence[int], chunk: int, off: float) -> Iterator[np.ndarray]:
        for start in range(0, len(tokens), chunk):
            yield whole[start : start + chunk] + (off if start >= 7 and chunk == 7 else 0)

    tokens = list(range(10))
    assert decode_difference(lambda text, chunk: run(text, chunk, 0.0), tokens) == 0.0
    assert decode_difference(lambda text, chunk: run(text, chunk, 0.5), tokens) == pytest.approx(0.5)
    assert decode_difference(lambda text, chunk: run(text, chunk, np.nan), tokens) == np.inf


@pytest.mark.parametrize(
    ("kind", "layer", "site"),
    [
        (Kind.K_NORM, 0, Site(Place.K_ROPE, 0)),
        (Kind.V_PROJ, 1, Site(Place.ATTENTION, 1)),
        (Kind.UP_PROJ, 1, Site(Place.MLP, 1)),
    ],
)
def test_first_divergence_names_the_sub_block(graph: Graph, kind: Kind, layer: int, site: Site) -> None:
    other = changed(graph, kind, layer, 1.01)

    tokens = random_tokens(9).tolist()
    found = {site: state.numpy() for site, state in reference_states(other, tokens).items()}
    divergence = first_divergence(reference_states(graph, tokens), found)
    assert divergence is not None
    assert divergence[0] == site
    assert divergence[1] == pytest.approx(0.01, rel=0.2)
    assert first_divergence(reference_states(other, tokens), found) is None


def test_texts_are_cut_where_a_router_is_undecided(model_graph: Callable[[str], Graph]) -> None:
    moe, text = model_graph("moe"), random_tokens(30).tolist()
    assert decided_parts(model_graph("tied"), [text]) == [text]
    assert decided_parts(moe, [text]) == [text]
    # A router of zeros is undecided everywhere.
    undecided = changed(moe, Kind.ROUTER, 0, 0.0)
    assert decided_parts(undecided, [text]) == []


def test_a_cache_that_is_not_the_reference_s(model_graph: Callable[[str], Graph]) -> None:
    graph, tokens = model_graph("tied"), random_tokens(20).tolist()
    cache = KVCache()
    forward(graph, [torch.tensor(tokens)], caches=[cache])
    right = {layer: (cache.keys[layer].numpy(), cache.values[layer].numpy()) for layer in cache.keys}
    assert cache_difference(graph, tokens, right) < 1e-6
    keys, values = right[1]
    late = np.concatenate([np.zeros_like(keys[:1]), keys[:-1]])
    assert cache_difference(graph, tokens, {**right, 1: (late, values)}) > 0.1
    assert cache_difference(graph, tokens, {**right, 1: (values, keys)}) > 0.1
    assert cache_difference(graph, tokens, {**right, 1: (keys[:-1], values)}) == float("inf")
