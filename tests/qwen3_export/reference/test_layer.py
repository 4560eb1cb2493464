"""One layer against naive arithmetic, and what the reference shows of itself while it runs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from models import COLD_EXPERT
from tokens import random_tokens, settled_tokens
from torch import Tensor

from qwen3_export.graph import ALL_ROWS, Graph, Kind, Role, Weight
from qwen3_export.reference import layer as reference_layer
from qwen3_export.reference.layer import attend
from qwen3_export.reference.model import Place, Site, forward, head_logits, logits, run_layer
from qwen3_export.reference.probe import SHARED_INPUT

NAIVE = 1e-5  # fp32 against fp64, on values of about 1

Graphs = Callable[[str], Graph]


def test_attention_equals_naive_attention() -> None:
    q_TNH, k_SKH, v_SKH = (torch.randn(tokens, heads, 16) for tokens, heads in ((5, 6), (9, 2), (9, 2)))
    context_TNH = attend(q_TNH, k_SKH, v_SKH).view(5, 6, 16)
    for t in range(5):
        for n in range(6):
            seen = 9 - 5 + t + 1
            scores = k_SKH[:seen, n // 3].double() @ q_TNH[t, n].double() / 16**0.5
            expected = torch.softmax(scores, dim=0) @ v_SKH[:seen, n // 3].double()
            assert torch.allclose(context_TNH[t, n].double(), expected, atol=NAIVE)


def test_attention_in_blocks_equals_attention_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    q_TNH, k_SKH, v_SKH = (torch.randn(tokens, heads, 16) for tokens, heads in ((50, 6), (77, 2), (77, 2)))
    at_once = attend(q_TNH, k_SKH, v_SKH)
    for block in (1, 7, 49):
        monkeypatch.setattr(reference_layer, "MAX_SCORES", block * 6 * 77)
        assert torch.allclose(attend(q_TNH, k_SKH, v_SKH), at_once, atol=NAIVE)


@pytest.mark.parametrize("name", ["moe", "moe_shares_as_they_are"])
def test_mixture_equals_naive_mixture(name: str, model_graph: Graphs) -> None:
    graph = model_graph(name)
    seen: dict[Site, Tensor] = {}
    forward(graph, [settled_tokens(graph, 30)], observe=lambda site, _, state: seen.update({site: state}))
    for layer in range(graph.config.num_hidden_layers):
        x_TD = seen[Site(Place.AFTER_ATTENTION, layer)].numpy().astype(np.float64)
        assert np.allclose(seen[Site(Place.MLP, layer)].numpy(), naive_mixture(graph, layer, x_TD), atol=NAIVE)


def naive_mixture(graph: Graph, layer: int, x_TD: np.ndarray) -> np.ndarray:
    """Token by token and expert by expert, fp64."""
    config = graph.config

    def weight(kind: Kind, expert: int | None = None) -> np.ndarray:
        return graph[Role(kind, layer, expert)].read().astype(np.float64)

    result = np.zeros_like(x_TD)
    for t, x_D in enumerate(x_TD):
        h_D = x_D / np.sqrt(np.mean(x_D**2) + config.rms_norm_eps) * weight(Kind.POST_ATTENTION_LAYERNORM)
        scores_E = np.exp(weight(Kind.ROUTER) @ h_D)
        shares_E = scores_E / scores_E.sum()
        chosen = np.argsort(-shares_E)[: config.num_experts_per_tok]
        total = shares_E[chosen].sum() if config.norm_topk_prob else 1.0
        for e in chosen:
            gate_I, up_I = weight(Kind.GATE_PROJ, e) @ h_D, weight(Kind.UP_PROJ, e) @ h_D
            result[t] += shares_E[e] / total * (weight(Kind.DOWN_PROJ, e) @ (gate_I / (1 + np.exp(-gate_I)) * up_I))
    return result


def test_announced_inputs_explain_the_outputs(model_graph: Graphs) -> None:
    graph = model_graph("tied")
    states: dict[Site, Tensor] = {}
    inputs: dict[Role, Tensor] = {}
    forward(
        graph,
        [random_tokens(11)],
        observe=lambda site, _, state: states.update({site: state}),
        observe_inputs=lambda role, _, x_TI, _shares: inputs.update({role: x_TI}),
    )
    for layer in range(graph.config.num_hidden_layers):
        for kind, place in ((Kind.O_PROJ, Place.ATTENTION), (Kind.DOWN_PROJ, Place.MLP)):
            weight_OI = torch.from_numpy(graph[Role(kind, layer)].read())
            expected = inputs[Role(kind, layer)] @ weight_OI.T
            assert torch.allclose(expected, states[Site(place, layer)], atol=NAIVE)
    assert torch.equal(inputs[graph.head.role], states[Site(Place.FINAL)])


@pytest.mark.parametrize("name", ["tied", "untied", "moe", "moe_with_dense_layers"])
def test_every_linear_weight_has_its_input_announced_once(name: str, model_graph: Graphs) -> None:
    graph = model_graph(name)
    announced: Counter[Role] = Counter()
    sequences = [random_tokens(200, seed=seed) for seed in range(2)]
    forward(graph, sequences, observe_inputs=lambda role, *_: announced.update([role]))
    linear = {weight.role for weight in graph if len(weight.shape) == 2 and weight.name != "model.embed_tokens"}
    linear.add(graph.head.role)
    assert announced.keys() == {role for role in linear if role.kind not in SHARED_INPUT}
    assert set(announced.values()) == {len(sequences)}


def test_shares_of_the_experts_of_each_token_sum_to_one(model_graph: Graphs) -> None:
    graph = model_graph("moe")
    tokens: Counter[int] = Counter()
    shares: dict[int, float] = defaultdict(float)

    def count(role: Role, _sequence: int, x_TI: Tensor, shares_T: Tensor | None) -> None:
        if role.kind is Kind.DOWN_PROJ and shares_T is not None and role.layer is not None:
            assert x_TI.shape[0] == shares_T.shape[0]
            tokens[role.layer] += len(shares_T)
            shares[role.layer] += shares_T.sum().item()

    forward(graph, [random_tokens(50)], observe_inputs=count)
    assert tokens == {0: 150, 1: 150}
    assert shares == {0: pytest.approx(50), 1: pytest.approx(50)}


def test_weights_are_read_when_needed_and_only_then(model_graph: Graphs) -> None:
    """A cold expert is not read at all, everything else once, however many sequences there are."""
    graph = model_graph("moe_cold")
    reads: Counter[str] = Counter()
    watched = graph.with_weights({weight.name: WatchedWeight(weight, reads) for weight in graph})
    forward(watched, [random_tokens(100, seed=seed) for seed in range(3)])
    layers = {weight.name for weight in graph if weight.role.layer is not None}
    cold = {name for name in layers if f".experts.{COLD_EXPERT}." in name}
    assert len(cold) == 6
    assert {name for name in reads if name in layers} == layers - cold
    assert {reads[name] for name in layers - cold} == {1}
    assert graph.head.name not in reads


@dataclass(frozen=True)
class WatchedWeight:
    """A weight that counts how often it is read."""

    weight: Weight
    reads: Counter[str] = field(repr=False)

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def role(self) -> Role:
        return self.weight.role

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight.shape

    @property
    def format(self) -> str:
        return self.weight.format

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        self.reads[self.name] += 1
        return self.weight.read(rows)


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_rounding_reaches_the_input_of_every_linear_weight(name: str, model_graph: Graphs) -> None:
    graph = model_graph(name)
    met: set[str] = set()

    def to_int8(x_TI: Tensor, weight: Weight) -> Tensor:
        met.add(weight.name)
        assert x_TI.shape[-1] == weight.shape[-1]
        scale_T1 = x_TI.abs().amax(dim=-1, keepdim=True) / 127
        return (x_TI / scale_T1).round() * scale_T1

    tokens_T = random_tokens(200)
    exact, rounded = logits(graph, tokens_T), logits(graph, tokens_T, round_activations=to_int8)
    linear = {weight.name for weight in graph if len(weight.shape) == 2}
    assert met == (linear if graph.config.tie_word_embeddings else linear - {"model.embed_tokens"})
    assert 1e-3 < (exact - rounded).abs().mean() < 0.1
    assert torch.equal(logits(graph, tokens_T, round_activations=lambda x_TI, _: x_TI), exact)


def test_layers_can_be_driven_one_by_one(model_graph: Graphs) -> None:
    graph = model_graph("moe_with_dense_layers")
    tokens_T = settled_tokens(graph, 25)
    states: dict[Site, Tensor] = {}
    (final_TD,) = forward(graph, [tokens_T], observe=lambda site, _, state: states.update({site: state}))
    x_TD = states[Site(Place.INPUT, 0)]
    for layer in range(graph.config.num_hidden_layers):
        (x_TD,) = run_layer(graph, layer, hidden=[x_TD])
        assert torch.equal(x_TD, states[Site(Place.OUTPUT, layer)])
    assert torch.equal(head_logits(graph, final_TD), logits(graph, tokens_T))


def test_truncated_model_is_its_layers(model_graph: Graphs) -> None:
    graph = model_graph("moe_with_dense_layers")
    tail = graph.truncated(2, 2)
    x_TD = torch.randn(10, graph.config.hidden_size)
    for layer in range(2):
        expected = run_layer(graph, layer + 2, hidden=[x_TD])
        assert torch.equal(run_layer(tail, layer, hidden=[x_TD])[0], expected[0])
