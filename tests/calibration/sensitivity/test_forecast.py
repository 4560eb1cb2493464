"""The forecast of measuring formats grows with what is measured, and is of the right size."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qwen3_export.calibration.sensitivity.forecast import sensitivity_forecast
from qwen3_export.calibration.sensitivity.run import measure_sensitivity
from qwen3_export.calibration.window_states import MEMORY_LIMIT
from qwen3_export.graph import Graph, Kind
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS

FORMATS = tuple(GGML_FORMATS[name] for name in ("Q4_K", "Q6_K", "Q8_0"))


def candidates(graph: Graph, formats: tuple[NumberFormat, ...] = FORMATS) -> dict[str, tuple[NumberFormat, ...]]:
    return {weight.name: formats for weight in graph if len(weight.shape) == 2 and weight.role.kind is not Kind.ROUTER}


def test_more_of_everything_takes_more(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("untied")
    base = sensitivity_forecast(graph, candidates(graph), num_tokens=1000, verified=100, threads=2)
    for more in (
        sensitivity_forecast(graph, candidates(graph), num_tokens=100_000, verified=100, threads=2),
        sensitivity_forecast(graph, candidates(graph), num_tokens=1000, verified=100_000, threads=2),
        sensitivity_forecast(graph, candidates(graph, 20 * FORMATS), num_tokens=1000, verified=100, threads=2),
    ):
        assert more.seconds > base.seconds
    assert base.disk_bytes == 0


def test_states_beyond_the_limit_are_disk(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("moe")
    tokens = MEMORY_LIMIT // (4 * graph.config.hidden_size * graph.config.num_hidden_layers)
    found = sensitivity_forecast(graph, candidates(graph), num_tokens=tokens, verified=0, threads=1)
    assert found.disk_bytes > MEMORY_LIMIT


def test_it_is_of_the_right_size(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("tied").truncated(0, 1)
    windows = [np.arange(256, dtype=np.int64) + i for i in range(16)]
    measure_sensitivity(graph, candidates(graph), windows[:1], work_dir=tmp_path / "first")  # compiles kernels
    expected = sensitivity_forecast(graph, candidates(graph), num_tokens=16 * 256, verified=0, threads=2)
    started = time.perf_counter()
    measure_sensitivity(graph, candidates(graph), windows, work_dir=tmp_path, threads=2)
    # Tests run on machines that do other things too.
    assert expected.seconds / 10 < time.perf_counter() - started < expected.seconds * 30
