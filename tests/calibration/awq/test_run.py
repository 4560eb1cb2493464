"""AWQ over whole models: an equal function before rounding, a better one after it, resumed to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from models import COLD_EXPERT
from numpy.typing import NDArray

from qwen3_export.calibration.awq.run import awq_graph, weighted_error
from qwen3_export.errors import OutputError, QuantizationError
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F16, F32
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.transforms import Pair, fold
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.reference.model import forward, logits

ALPHAS = (0.3, 0.6)
THREE_BITS = AffineFormat(num_bits=3, group_size=64)


def formats_of(graph: Graph, matrix: NumberFormat = THREE_BITS) -> dict[str, NumberFormat]:
    kept = {Kind.EMBED_TOKENS: F16, Kind.LM_HEAD: F16, Kind.ROUTER: F32}
    return {weight.name: F32 if weight.role.is_norm else kept.get(weight.role.kind, matrix) for weight in graph}


def random_windows(count: int = 3, length: int = 48) -> list[NDArray[np.int64]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 8182, length) for _ in range(count)]


def test_the_function_stays_and_rounding_costs_less(demo_graph: Graph, tmp_path: Path) -> None:
    graph, windows = demo_graph.truncated(0, 2), random_windows()
    found = awq_graph(graph, formats_of(graph), windows, work_dir=tmp_path, alphas=ALPHAS)
    assert {place.pair for place in found.scales} >= {Pair.INPUT_LAYERNORM, Pair.POST_ATTENTION_LAYERNORM}
    tokens_T = torch.from_numpy(windows[0])
    exact_TD = forward(graph, [tokens_T])[0]
    folded_TD = forward(fold(graph, found.scales), [tokens_T])[0]
    torch.testing.assert_close(folded_TD, exact_TD, rtol=1e-3, atol=1e-3)
    matrices = [weight for weight in graph if weight.role.layer is not None and len(weight.shape) == 2]
    plain = round_graph(graph, {weight.name: THREE_BITS for weight in matrices})
    ours, theirs = (float((forward(one, [tokens_T])[0] - exact_TD).norm()) for one in (found.graph, plain))
    assert ours < 0.95 * theirs


def test_an_interrupted_run_goes_on_to_the_same_bits(demo_graph: Graph, tmp_path: Path) -> None:
    graph, windows = demo_graph.truncated(0, 2), random_windows()
    formats = formats_of(graph, GGML_FORMATS["Q4_0"])
    whole = awq_graph(graph, formats, windows, work_dir=tmp_path / "whole", alphas=ALPHAS)

    class KilledError(Exception):
        pass

    def kill(done: int, _total: int) -> None:
        if done == 1:
            raise KilledError

    with pytest.raises(KilledError):
        awq_graph(graph, formats, windows, work_dir=tmp_path / "cut", alphas=ALPHAS, progress=kill)
    (kept,) = (tmp_path / "cut").rglob("*.npz")
    stamp = kept.stat().st_mtime_ns
    again = awq_graph(graph, formats, windows, work_dir=tmp_path / "cut", alphas=ALPHAS)
    assert kept.stat().st_mtime_ns == stamp
    assert again.errors == whole.errors
    for name, weight in whole.graph.weights.items():
        np.testing.assert_array_equal(again.graph.weights[name].read(), weight.read())


def test_other_tokens_are_another_run(demo_graph: Graph, tmp_path: Path) -> None:
    graph = demo_graph.truncated(0, 1)
    for windows in (random_windows(), random_windows(2)):
        awq_graph(graph, formats_of(graph), windows, work_dir=tmp_path, alphas=ALPHAS)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_mixture_with_an_expert_that_saw_nothing(model_graph, tmp_path: Path) -> None:
    graph, windows = model_graph("moe_cold"), random_windows()
    found = awq_graph(graph, formats_of(graph), windows, work_dir=tmp_path, alphas=ALPHAS)
    cold = found.graph[Role(Kind.DOWN_PROJ, graph.config.num_hidden_layers - 1, COLD_EXPERT)]
    assert np.isfinite(cold.read()).all()
    tokens_T = torch.from_numpy(windows[0])
    assert torch.isfinite(logits(found.graph, tokens_T)).all()


def test_errors_are_those_of_the_weights_as_they_are_stored(demo_graph: Graph, tmp_path: Path) -> None:
    graph = demo_graph.truncated(0, 1)
    found = awq_graph(graph, formats_of(graph), random_windows(), work_dir=tmp_path, alphas=ALPHAS)
    matrices = {weight.name for weight in graph if weight.role.layer is not None and len(weight.shape) == 2}
    assert found.errors.keys() == matrices
    folded = fold(graph, found.scales)
    name = next(iter(matrices))
    stored, exact = found.graph.weights[name].read(), folded.weights[name].read()
    flat = np.ones(exact.shape[1], np.float32)
    expected = float(np.square(stored - exact).sum() / np.square(exact).sum())
    assert weighted_error(found.graph.weights[name], folded.weights[name], flat) == pytest.approx(expected, rel=1e-4)
    assert 0 < found.errors[name] < 0.2


def test_what_is_refused(demo_graph: Graph, tmp_path: Path) -> None:
    graph = demo_graph.truncated(0, 1)
    formats = formats_of(graph)
    with pytest.raises(QuantizationError, match="has no number format"):
        awq_graph(graph, dict(list(formats.items())[1:]), random_windows(), work_dir=tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="another `work_dir`"):
        awq_graph(graph, formats, random_windows(), work_dir=tmp_path / "file")
