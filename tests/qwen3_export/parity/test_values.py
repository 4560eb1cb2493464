"""How far off each matrix is: measured as the textbook has it, experts of a layer together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Role, Weight
from qwen3_export.parity.values import Limits, ValueCheck, compare_values

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


@pytest.mark.parametrize("is_solved", [False, True])
def test_a_solver_moves_a_fine_weight_as_far_as_a_coarse_one_asks_for(
    model_graph: Callable[[str], Graph], is_solved: bool
) -> None:
    """down_proj has finer limits than the rest; off by what the coarse ones allow, it is a solver's doing or damage."""
    graph, role = model_graph("tied"), Role(Kind.DOWN_PROJ, 0)
    weights = {weight.name: Noisy(source=weight, off=0.2 if weight.role == role else 0.0) for weight in graph}
    fine = Limits(tensor=0.02, block=0.05, block_size=16)

    def limits(weight: Weight) -> Limits | None:
        if len(weight.shape) == 1:
            return None
        return fine if weight.role.kind is Kind.DOWN_PROJ else LIMITS

    found = compare_values(graph.with_weights(weights), graph, limits=limits, is_full=True, is_solved=is_solved)
    assert len(found.differences) == (0 if is_solved else 1)


def test_a_solver_s_small_block_is_measured_by_its_row(model_graph: Callable[[str], Graph]) -> None:
    graph, role = model_graph("tied"), Role(Kind.UP_PROJ, 1)
    name = graph[role].name
    values = graph[role].read().copy()
    values[3, :16] *= 0.1  # a small block, which a solver moves by more than its own size
    expected = graph.with_weights({**graph.weights, name: Values(source=graph[role], values=values)})
    moved = values.copy()
    moved[3, :16] += values[3, 16:32] * 0.3
    stored = graph.with_weights({**graph.weights, name: Values(source=graph[role], values=moved)})
    for is_solved in (False, True):
        found = compare_values(
            stored,
            expected,
            limits=lambda weight: LIMITS if len(weight.shape) > 1 else None,
            is_full=True,
            is_solved=is_solved,
        )
        assert [text.partition(":")[0] for text in found.differences] == ([] if is_solved else [name])
