"""Gradients on the way back are those of the reference: against differences of its own outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qwen3_export.calibration.sensitivity import backward as module
from qwen3_export.calibration.sensitivity.backward import Passed, backward
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


def seen(graph: Graph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[Role, Passed]:
    parts = iter(wanted(graph))
    monkeypatch.setattr(module, "_sampled_gradient", lambda *_: next(parts))
    found: dict[Role, Passed] = {}
    backward(graph, windows(graph), lambda role, passed: found.update({role: passed}), folder=tmp_path)
    return found


def by_gradient(passed: Passed, change_OI: Tensor) -> float:
    total = 0.0
    for i, (x_TI, gradient_TO) in enumerate(zip(passed.inputs, passed.gradients, strict=True)):
        change_TO = x_TI @ change_OI.T
        change_TO = change_TO if passed.spread is None else passed.spread(i, change_TO)
        total += float((change_TO * gradient_TO).double().sum())
    return total


@pytest.mark.parametrize("variant", ["tied", "moe"])
def test_every_weight_s_gradient(
    variant: str, model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = model_graph(variant)
    found = seen(graph, tmp_path, monkeypatch)
    kinds = {(role.kind, role.expert is not None) for role in found if role.layer is not None}
    assert len(kinds) == 7
    checked = 0
    for role, passed in found.items():
        if role.layer is None or (role.expert or 0) > 1:
            continue
        generator = torch.Generator().manual_seed(5)
        change = torch.randn(graph[role].shape, generator=generator) * float(np.std(graph[role].read()))
        sides = []
        for sign in (1, -1):
            moved = Moved(source=graph[role], added=(sign * STEP * change).numpy())
            sides.append(value(graph.with_weights({**graph.weights, moved.name: moved})))
        measured = (sides[0] - sides[1]) / (2 * STEP)
        assert by_gradient(passed, change) == pytest.approx(measured, rel=0.05, abs=0.05), role
        checked += 1
    assert checked >= 14


def test_the_embedding_s_gradient(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = model_graph("untied")
    passed = seen(graph, tmp_path, monkeypatch)[Role(Kind.EMBED_TOKENS)]
    weight = graph[Role(Kind.EMBED_TOKENS)]
    generator = np.random.default_rng(0)
    change = generator.standard_normal(weight.shape, np.float32) * np.float32(weight.read().std())
    sides = [
        value(graph.with_weights({**graph.weights, weight.name: Moved(source=weight, added=sign * STEP * change)}))
        for sign in (1, -1)
    ]
    moved = sum(
        float((torch.from_numpy(change)[tokens_T1[:, 0]] * gradient_TD).double().sum())
        for tokens_T1, gradient_TD in zip(passed.inputs, passed.gradients, strict=True)
    )
    assert moved == pytest.approx((sides[0] - sides[1]) / (2 * STEP), rel=0.05)


def test_drawn_tokens_are_the_seed_s(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph, found = model_graph("tied"), []
    for seed in (0, 0, 1):
        gradients: list[Tensor] = []
        backward(
            graph,
            windows(graph),
            lambda role, passed, kept=gradients: kept.extend(passed.gradients) if role.kind is Kind.Q_PROJ else None,
            folder=tmp_path,
            seed=seed,
        )
        found.append(torch.cat([part.flatten() for part in gradients]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not list(tmp_path.iterdir())
