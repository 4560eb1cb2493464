"""Gradients on the way back are those of the reference: against differences of its own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_export.calibration.sensitivity.backward import Passed, backward, drawn_tokens
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Role
from qwen3_export.reference.model import forward

STEP = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved(DerivedWeight):
    """A weight with something added."""

    added: np.ndarray

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.source.read(rows) + self.added[rows]


def windows(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, graph.config.vocab_size, (length,), generator=generator) for length in (9, 14)]


def wanted(graph: Graph) -> list[Tensor]:
    """A direction for each final hidden state: what is differentiated is their sum of products."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(len(tokens), graph.config.hidden_size, generator=generator) for tokens in windows(graph)]


def value(graph: Graph) -> float:
    found = forward(graph, windows(graph))
    return sum(float((h.double() * u).sum()) for h, u in zip(found, wanted(graph), strict=True))


def seen(graph: Graph, tmp_path: Path) -> tuple[dict[Role, Passed], dict[Role, Tensor]]:
    """What passed through each weight, and the gradients of norms."""
    found: dict[Role, Passed] = {}
    norms: dict[Role, Tensor] = {}
    backward(
        graph,
        windows(graph),
        lambda role, passed: found.update({role: passed}),
        folder=tmp_path,
        head_gradient=lambda _hidden: wanted(graph),
        visit_norm=lambda role, gradient: norms.update({role: gradient}),
    )
    return found, norms


def by_gradient(passed: Passed, change_OI: Tensor) -> float:
    total = 0.0
    for i, (x_TI, gradient_TO) in enumerate(zip(passed.inputs, passed.gradients, strict=True)):
        change_TO = x_TI @ change_OI.T
        change_TO = change_TO if passed.spread is None else passed.spread(i, change_TO)
        total += float((change_TO * gradient_TO).double().sum())
    return total


def by_own_gradient(passed: Passed, change_OI: Tensor) -> float:
    gradients = passed.gradients if passed.own_gradients is None else passed.own_gradients
    by_weight_OI = sum(g_TO.T @ x_TI for g_TO, x_TI in zip(gradients, passed.inputs, strict=True))
    return float((by_weight_OI * change_OI).double().sum())


def measured(graph: Graph, role: Role, change: Tensor) -> float:
    """The derivative by a change of one weight, from two values."""
    sides = []
    for sign in (1, -1):
        moved = Moved(source=graph[role], added=(sign * STEP * change).numpy())
        sides.append(value(graph.with_weights({**graph.weights, moved.name: moved})))
    return (sides[0] - sides[1]) / (2 * STEP)


@pytest.mark.parametrize("variant", ["tied", "moe"])
def test_every_weight_s_gradient(variant: str, model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph(variant)
    found, _ = seen(graph, tmp_path)
    kinds = {(role.kind, role.expert is not None) for role in found if role.layer is not None}
    assert len(kinds) == 7
    checked = 0
    for role, passed in found.items():
        if role.layer is None or (role.expert or 0) > 1:
            continue
        generator = torch.Generator().manual_seed(5)
        change = torch.randn(graph[role].shape, generator=generator) * float(np.std(graph[role].read()))
        expected = pytest.approx(measured(graph, role, change), rel=0.05, abs=0.05)
        assert by_gradient(passed, change) == expected, role
        assert by_own_gradient(passed, change) == expected, role
        checked += 1
    assert checked >= 14


@pytest.mark.parametrize("variant", ["tied", "moe"])
def test_every_norm_s_gradient(variant: str, model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph(variant)
    _, norms = seen(graph, tmp_path)
    assert set(norms) == {weight.role for weight in graph if len(weight.shape) == 1}
    for role, gradient in norms.items():
        change = torch.randn(graph[role].shape, generator=torch.Generator().manual_seed(6)) / 30
        found = float((gradient * change).double().sum())
        assert found == pytest.approx(measured(graph, role, change), rel=0.05, abs=0.05), role


def test_the_embedding_s_gradient(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("untied")
    passed = seen(graph, tmp_path)[0][Role(Kind.EMBED_TOKENS)]
    weight = graph[Role(Kind.EMBED_TOKENS)]
    generator = np.random.default_rng(0)
    change = torch.from_numpy(generator.standard_normal(weight.shape, np.float32) * np.float32(weight.read().std()))
    moved = sum(
        float((change[tokens_T1[:, 0]] * gradient_TD).double().sum())
        for tokens_T1, gradient_TD in zip(passed.inputs, passed.gradients, strict=True)
    )
    assert moved == pytest.approx(measured(graph, weight.role, change), rel=0.05)


def test_drawn_tokens_are_the_seed_s(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph, found = model_graph("tied"), []
    for seed in (0, 0, 1):
        gradients: list[Tensor] = []
        backward(
            graph,
            windows(graph),
            lambda role, passed, kept=gradients: kept.extend(passed.gradients) if role.kind is Kind.Q_PROJ else None,
            folder=tmp_path,
            head_gradient=drawn_tokens(graph, seed=seed),
        )
        found.append(torch.cat([part.flatten() for part in gradients]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not list(tmp_path.iterdir())
