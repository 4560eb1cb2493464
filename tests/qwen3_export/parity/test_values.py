"""How far off each matrix is: measured as the textbook has it, experts of a layer together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Role
from qwen3_export.parity.values import Limits, ValueCheck, compare_values

LIMITS = Limits(tensor=0.3, block=0.9, block_size=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy(DerivedWeight):
    """A weight whose values are off by a share of themselves."""

    off: float

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.source.read(rows) * np.float32(1 + self.off)


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
