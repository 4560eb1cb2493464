"""The metric of outputs: made of the gradients, in spans, and kept for a run that goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from models import COLD_EXPERT
from torch import Tensor

from qwen3_export.calibration.gptq import outputs as module
from qwen3_export.calibration.gptq.outputs import OutputFolder, measure_outputs, span_rows
from qwen3_export.calibration.sensitivity.backward import Passed, backward
from qwen3_export.graph import Graph, Kind, Role


def windows(graph: Graph) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(0, graph.config.vocab_size, (length,), generator=generator) for length in (20, 30)]


def gradients(graph: Graph, folder: Path) -> dict[Role, Tensor]:
    """All gradients of each weight, [P, O]; those of values are of the heads that read them."""
    found: dict[Role, Tensor] = {}

    def visit(role: Role, passed: Passed) -> None:
        if role.layer is not None:
            found[role] = torch.cat(list(passed.gradients))

    backward(graph, windows(graph), visit, folder=folder)
    return found


def check(folder: OutputFolder, role: Role, wanted_OO: Tensor) -> None:
    metric = folder.metric(role)
    assert metric is not None
    size = len(metric.spans[0])
    for i, span_SS in enumerate(metric.spans):
        rows = slice(i * size, (i + 1) * size)
        allowed = 1e-3 * torch.outer(wanted_OO.diagonal()[rows], wanted_OO.diagonal()[rows]).sqrt() + 1e-12
        assert bool(((span_SS - wanted_OO[rows, rows]).abs() <= allowed).all())


def test_it_is_the_sum_over_gradients(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = model_graph("tied")
    monkeypatch.setattr(module, "MOST_ROWS", 32)
    found = measure_outputs(graph, windows(graph), folder=tmp_path)
    config = graph.config
    for role, gradient_PO in gradients(graph, tmp_path).items():
        g = gradient_PO
        if role.kind is Kind.V_PROJ:
            g = g.reshape(len(g), config.num_key_value_heads, -1, config.head_dim).sum(2).flatten(1)
        check(found, role, g.T @ g)
    assert found.metric(graph.head.role) is None


def test_experts_share_the_metric_of_what_they_write(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("moe")
    found = measure_outputs(graph, windows(graph), folder=tmp_path)
    sparse = next(layer for layer in range(graph.config.num_hidden_layers) if graph.config.is_sparse_layer(layer))
    own = [
        g.T @ g
        for role, g in gradients(graph, tmp_path).items()
        if role.layer == sparse and role.kind is Kind.DOWN_PROJ
    ]
    assert len(own) > 1
    check(found, Role(Kind.DOWN_PROJ, sparse, COLD_EXPERT), torch.stack(own).sum(0))
    assert found.metric(Role(Kind.GATE_PROJ, sparse, 0)) is None


def test_layers_that_are_there_are_not_measured_again(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, steps = model_graph("tied"), []
    first = measure_outputs(graph, windows(graph), folder=tmp_path, advance=lambda: steps.append(0))
    whole = [first.file(layer).read_bytes() for layer in range(graph.config.num_hidden_layers)]
    first.file(0).unlink()
    again = measure_outputs(graph, windows(graph), folder=tmp_path)
    assert [again.file(layer).read_bytes() for layer in range(graph.config.num_hidden_layers)] == whole
    monkeypatch.setattr(module, "backward", None)
    more: list[int] = []
    measure_outputs(graph, windows(graph), folder=tmp_path, advance=lambda: more.append(0))
    assert len(more) == len(steps) == 2 * graph.config.num_hidden_layers


@pytest.mark.parametrize(
    ("rows", "size"), [(1024, 1024), (9728, 608), (5120, 1024), (25600, 1024), (128, 128), (48, 48), (2056, 514)]
)
def test_spans_divide_the_rows(rows: int, size: int) -> None:
    assert span_rows(rows) == size


def test_an_output_that_nothing_depends_on_is_kept(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = model_graph("tied")

    def silent(_graph: Graph, _windows: object, visit: Callable[[Role, Passed], None], **_: object) -> None:
        for layer in range(graph.config.num_hidden_layers):
            for kind in (Kind.O_PROJ, Kind.DOWN_PROJ):
                visit(Role(kind, layer), Passed(inputs=[torch.ones(3, 4)], gradients=[torch.zeros(3, 64)]))

    monkeypatch.setattr(module, "backward", silent)
    metric = measure_outputs(graph, windows(graph), folder=tmp_path).metric(Role(Kind.O_PROJ, 0))
    assert metric is not None
    assert np.array_equal(metric.spans[0].numpy(), np.zeros((64, 64)))
