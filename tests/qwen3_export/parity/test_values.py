"""How far off each matrix is: measured as the textbook has it, experts of a layer together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Role
from qwen3_export.parity.values import Limits, ValueCheck, _Correlations, compare_values
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq.hessian import Moments
from qwen3_export.quantizers.gptq.solver import gptq
from qwen3_export.quantizers.weights.digests import value_digests
from qwen3_export.quantizers.weights.tuned import MOST_OF_A_NORM

LIMITS = Limits(tensor=0.3, block=0.9, block_size=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy(DerivedWeight):
    """A weight whose values are off by a share of themselves."""

    off: float

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.source.read(rows) * np.float32(1 + self.off)


@dataclass(frozen=True, slots=True, kw_only=True)
class Values(DerivedWeight):
    """A weight with other values."""

    values: np.ndarray

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.values[rows]


def check(graph: Graph, off: dict[Role, float], *, exact: bool = False) -> ValueCheck:
    weights = {weight.name: Noisy(source=weight, off=off.get(weight.role, 0.0)) for weight in graph}
    return compare_values(
        graph.with_weights(weights),
        graph,
        limits=lambda weight: None if exact or len(weight.shape) == 1 else LIMITS,
        is_full=True,
    )


def error_of(found: ValueCheck, role: str) -> float:
    """Of layer 0."""
    (error,) = [error.relative for error in found.errors if error.role == role and error.layer == 0]
    return error


def test_errors_are_relative_to_the_values(model_graph: Callable[[str], Graph]) -> None:
    found = check(model_graph("tied"), {Role(Kind.Q_PROJ, 1): 0.05, Role(Kind.EMBED_TOKENS): 0.01})
    by_place = {(error.role, error.layer): error.relative for error in found.errors}
    assert by_place["q_proj", 1] == pytest.approx(0.05, rel=1e-3)
    assert by_place["embed_tokens", None] == pytest.approx(0.01, rel=1e-3)
    assert by_place["q_proj", 0] == 0.0
    assert not any("norm" in role for role, _ in by_place)
    assert found.differences == ()


def test_experts_of_a_layer_count_together(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("moe")
    experts = [weight.role for weight in graph if weight.role.kind is Kind.UP_PROJ and weight.role.layer == 0]
    assert len(experts) > 1
    found = check(graph, dict.fromkeys(experts, 0.1))
    assert error_of(found, "up_proj") == pytest.approx(0.1, rel=1e-3)
    one = check(graph, {experts[0]: 0.1})
    assert 0.1 / len(experts) < error_of(one, "up_proj") < 0.1


def test_floats_and_numbers_that_are_none_have_errors_too(model_graph: Callable[[str], Graph]) -> None:
    role = Role(Kind.V_PROJ, 0)
    floats = check(model_graph("tied"), {role: 0.02}, exact=True)
    assert error_of(floats, "v_proj") == pytest.approx(0.02, rel=1e-2)
    assert any("v_proj" in difference for difference in floats.differences)
    broken = check(model_graph("tied"), {role: float("nan")})
    assert error_of(broken, "v_proj") == float("inf")


def solved(
    graph: Graph, changed: dict[str, np.ndarray], *, recorded: dict[str, np.ndarray] | None = None
) -> ValueCheck:
    """The comparison of a solver's values; the file records the digests of ``recorded``, by weight name."""
    stored = with_values(graph, changed)
    written = with_values(graph, recorded or {})
    return compare_values(
        stored,
        graph,
        limits=lambda weight: LIMITS if len(weight.shape) > 1 else None,
        is_full=True,
        is_solved=True,
        digests=None if recorded is None else value_digests(written, [w.name for w in graph if len(w.shape) > 1]),
    )


def with_values(graph: Graph, changed: dict[str, np.ndarray]) -> Graph:
    values = {name: Values(source=graph.weights[name], values=new) for name, new in changed.items()}
    return graph.with_weights({**graph.weights, **values})


def far_off(values: np.ndarray, *, by: float) -> np.ndarray:
    """Values with an error of ``by`` times their own size, as a solver gives rows whose inputs hardly ever differ."""
    noise = np.random.default_rng(0).normal(size=values.shape).astype(np.float32)
    return values + noise * values.std() * np.float32(by)


def named(texts: tuple[str, ...]) -> set[str]:
    return {text.partition(":")[0] for text in texts}


@pytest.mark.parametrize("by", [0.5, 1.5, 4.0])
def test_a_solver_may_go_as_far_as_it_likes(model_graph: Callable[[str], Graph], by: float) -> None:
    """Its values are known by their digest; without one they are a note."""
    graph = model_graph("moe")
    name = graph[Role(Kind.DOWN_PROJ, 0, 5)].name
    moved = {name: far_off(graph.weights[name].read(), by=by)}
    found = solved(graph, moved, recorded=moved)
    assert (found.differences, found.notes) == ((), ())
    found = solved(graph, moved)
    assert found.differences == ()
    assert [name in note and "no record" in note for note in found.notes] == [True]


def test_values_that_the_solver_did_not_choose_are_damage(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("moe")
    name = graph[Role(Kind.UP_PROJ, 1, 2)].name
    values = graph.weights[name].read().copy()
    values[7, 9] += np.float32(1e-3)
    found = solved(graph, {name: values}, recorded={})
    (text,) = found.differences
    assert text.startswith("model.layers.1.mlp.experts.up_proj: ")  # all experts of a layer share a digest
    assert "digest" in text


def test_norms_that_were_tuned(model_graph: Callable[[str], Graph]) -> None:
    """They may differ by a part of themselves, and must be those that were recorded."""
    graph = model_graph("tied")
    norm = graph[Role(Kind.K_NORM, 0)]

    def differences(off: float, *, recorded: float | None) -> tuple[str, ...]:
        def with_norm(share: float) -> Graph:
            return graph.with_weights({**graph.weights, norm.name: Noisy(source=norm, off=share)})

        return compare_values(
            with_norm(off),
            graph,
            limits=lambda weight: None if len(weight.shape) == 1 else LIMITS,
            is_full=True,
            is_solved=True,
            digests={} if recorded is None else value_digests(with_norm(recorded), [norm.name]),
        ).differences

    assert differences(0.15, recorded=0.15) == ()
    assert differences(-MOST_OF_A_NORM, recorded=-MOST_OF_A_NORM) == ()
    (found,) = differences(0.15, recorded=0.14)
    assert found.startswith(f"{norm.name}: its values are not those that the solver chose")
    for share, recorded in ((0.3, 0.3), (1e-3, None)):
        (found,) = differences(share, recorded=recorded)
        assert found.startswith(f"{norm.name}: is stored as")


def test_what_is_not_recorded_is_held_to_its_format(model_graph: Callable[[str], Graph]) -> None:
    """A solved file has weights, too, that were rounded."""
    graph = model_graph("tied")
    name, other = graph[Role(Kind.V_PROJ, 0)].name, graph[Role(Kind.K_PROJ, 0)].name
    found = compare_values(
        with_values(graph, {name: far_off(graph.weights[name].read(), by=0.6)}),
        graph,
        limits=lambda weight: LIMITS if len(weight.shape) > 1 else None,
        is_full=True,
        is_solved=True,
        digests=value_digests(graph, [other]),
    )
    assert named(found.differences) == {name}


def transposed(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.UP_PROJ, 0)].name
    return {name: graph.weights[name].read().T.reshape(graph.weights[name].shape).copy()}


def rows_permuted(graph: Graph) -> dict[str, np.ndarray]:
    name, heads = graph[Role(Kind.Q_PROJ, 0)].name, graph.config.num_attention_heads
    q_OI = graph.weights[name].read()
    return {name: q_OI.reshape(heads, 2, -1, q_OI.shape[1]).swapaxes(1, 2).reshape(q_OI.shape)}


def two_rows_swapped(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.EMBED_TOKENS)].name
    values = graph.weights[name].read().copy()
    values[[5000, 5001]] = values[[5001, 5000]]
    return {name: values}


def columns_permuted(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.O_PROJ, 1)].name
    return {name: np.roll(graph.weights[name].read(), 1, axis=1)}


def of_another_layer(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.DOWN_PROJ, 0)].name
    return {name: graph[Role(Kind.DOWN_PROJ, 1)].read()}


def negated(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.K_PROJ, 1)].name
    return {name: -graph.weights[name].read()}


def row_of_zeros(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.GATE_PROJ, 1)].name
    values = graph.weights[name].read().copy()
    values[100] = 0
    return {name: values}


def half_of_the_rows_rolled(graph: Graph) -> dict[str, np.ndarray]:
    name = graph[Role(Kind.UP_PROJ, 1)].name
    values = graph.weights[name].read().copy()
    values[256:] = np.roll(values[256:], 1, axis=0)
    return {name: values}


WRONG = [
    half_of_the_rows_rolled,
    transposed,
    rows_permuted,
    two_rows_swapped,
    columns_permuted,
    of_another_layer,
    negated,
    row_of_zeros,
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.__name__)
def test_a_wrong_tensor_is_no_solver_s_doing(
    model_graph: Callable[[str], Graph], wrong: Callable[[Graph], dict[str, np.ndarray]]
) -> None:
    """Neither with a digest, for the wrong values may have been recorded, nor without one."""
    graph = model_graph("tied")
    changed = {name: far_off(values, by=0.3) for name, values in wrong(graph).items()}
    for recorded in (None, changed):
        found = solved(graph, changed, recorded=recorded)
        assert named(found.differences) == changed.keys()
        assert all("correlate" in text for text in found.differences)


def test_rows_that_share_a_large_mean_are_told_apart(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    name = graph[Role(Kind.EMBED_TOKENS)].name
    common = np.random.default_rng(1).normal(size=256).astype(np.float32)
    graph = with_values(graph, {name: graph.weights[name].read() + common})
    assert solved(graph, {name: far_off(graph.weights[name].read(), by=0.02)}).differences == ()
    assert named(solved(graph, two_rows_swapped(graph)).differences) == {name}


def test_rows_that_are_all_the_same_tell_nothing(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    name = graph[Role(Kind.V_PROJ, 1)].name
    for values in (np.zeros_like, np.ones_like):
        same = with_values(graph, {name: values(graph.weights[name].read())})
        assert solved(same, {name: far_off(graph.weights[name].read(), by=0.01)}).differences == ()


def test_a_solver_that_corrects_others_errors_goes_beyond_every_limit() -> None:
    """A weak expert: what the layers before it have lost is larger than all that it adds itself."""
    random = np.random.default_rng(0)
    weights = torch.from_numpy(random.normal(0, 0.02, (64, 256)).astype(np.float32))
    inputs = torch.from_numpy(random.normal(size=(40, 256)) * np.linspace(0.1, 2, 256))
    lost = torch.from_numpy(random.normal(0, 1.0, (40, 64)))
    moments = Moments(hessian_II=(inputs.T @ inputs).float(), residual_OI=(lost.T @ inputs).float())
    found = gptq(weights, moments, GGML_FORMATS["Q4_K"])
    stored = GGML_FORMATS["Q4_K"].dequantize(found.codes_OI, found.params)
    assert found.method == "gptq"
    assert np.linalg.norm(stored - weights.numpy()) > np.linalg.norm(weights.numpy())
    correlations = _Correlations()
    correlations.add(stored, weights.numpy(), first=0)
    assert correlations.unrelated_rows() == []
    correlations = _Correlations()
    correlations.add(np.roll(stored, 1, axis=0), weights.numpy(), first=0)
    assert len(correlations.unrelated_rows()) > 60
