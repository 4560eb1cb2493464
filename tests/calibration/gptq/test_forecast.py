"""The forecast of a GPTQ run grows with what the run has to do, and is of the right size."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qwen3_export.calibration.gptq.forecast import gptq_forecast
from qwen3_export.calibration.gptq.sequential import SequentialSettings, gptq_graph
from qwen3_export.graph import Graph
from qwen3_export.quantizers.floats import F32
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq.solver import GptqSettings


def formats_of(graph: Graph) -> dict[str, NumberFormat]:
    return {weight.name: F32 if len(weight.shape) == 1 else GGML_FORMATS["Q4_K"] for weight in graph}


def windows(count: int) -> list[np.ndarray]:
    return [np.arange(64, dtype=np.int64) + i for i in range(count)]


def test_more_tokens_take_more_of_everything_but_stored_bytes(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("untied")
    few, many = (gptq_forecast(graph, formats_of(graph), windows(count)) for count in (8, 800))
    assert many.seconds > few.seconds
    assert many.memory_bytes > few.memory_bytes
    assert many.disk_bytes == few.disk_bytes


def test_states_beyond_the_limit_are_disk(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("moe")
    held = gptq_forecast(graph, formats_of(graph), windows(8))
    spilled = gptq_forecast(graph, formats_of(graph), windows(8), settings=SequentialSettings(memory_limit=0))
    assert spilled.disk_bytes - held.disk_bytes == held.memory_bytes - spilled.memory_bytes > 0


def test_measuring_outputs_takes_time_and_disk(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("moe")
    without, with_outputs, with_fewer = (
        gptq_forecast(graph, formats_of(graph), windows(80), settings=SequentialSettings(output_tokens=tokens))
        for tokens in (0, 5120, 64)
    )
    assert with_outputs.disk_bytes == with_fewer.disk_bytes > without.disk_bytes
    assert with_outputs.seconds > without.seconds
    assert with_outputs.memory_bytes >= with_fewer.memory_bytes >= without.memory_bytes


def test_it_is_of_the_right_size(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("untied").truncated(0, 1)
    settings = SequentialSettings(solver=GptqSettings(rounds=2, cycles=1))
    gptq_graph(graph, formats_of(graph), windows(1), work_dir=tmp_path / "first", settings=settings)  # compiles kernels
    expected = gptq_forecast(graph, formats_of(graph), windows(64), settings=settings, threads=2)
    started = time.perf_counter()
    gptq_graph(graph, formats_of(graph), windows(64), work_dir=tmp_path, settings=settings, threads=2)
    # Tests run on machines that do other things too.
    assert expected.seconds / 6 < time.perf_counter() - started < expected.seconds * 20
    stored = sum(path.stat().st_size for path in tmp_path.rglob("*.solved"))
    assert expected.disk_bytes > 0.3 * stored
