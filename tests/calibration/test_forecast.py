"""The forecast: right in order of magnitude, and refused disks are refused beforehand."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokens import random_tokens

from qwen3_export.calibration import forecast as module
from qwen3_export.calibration.collect import collect_statistics
from qwen3_export.calibration.forecast import COPIES, MAX_BLOCK_BYTES, block_tokens, check_disk, forecast
from qwen3_export.calibration.work_folder import open_work_folder
from qwen3_export.errors import OutputError
from qwen3_export.graph import Graph

WINDOWS = [random_tokens(256, seed=seed).numpy() for seed in range(4)]


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_time_is_that_of_the_run(name: str, model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph(name)
    said = forecast(graph, WINDOWS)
    started = time.perf_counter()
    work = open_work_folder(tmp_path, graph, windows=WINDOWS)
    collect_statistics(graph, WINDOWS, dataset="random", work=work, max_tokens=block_tokens(graph))
    measured = time.perf_counter() - started
    assert measured / 20 < said.seconds < measured * 20  # a machine that is busy with other things varies a lot


def test_disk_is_two_residual_streams(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("tied")
    work = open_work_folder(tmp_path, graph, windows=WINDOWS)
    seen: list[int] = []

    def measure(_: int) -> None:
        seen.append(sum(path.stat().st_size for path in work.path.iterdir() if "hidden" in path.name))

    collect_statistics(graph, WINDOWS, dataset="random", work=work, max_tokens=256, progress=measure)
    assert max(seen) == forecast(graph, WINDOWS).disk_bytes == 2 * 4 * 256 * 4 * 256


def test_done_layers_are_not_forecast(model_graph: Callable[[str], Graph]) -> None:
    assert forecast(model_graph("tied"), WINDOWS, done_layers=2).seconds == 0


def test_blocks_take_what_a_layer_does(model_graph: Callable[[str], Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    graph = model_graph("tied")
    assert block_tokens(graph) == module.MIN_BLOCK_BYTES // (COPIES * 256 * 4)
    monkeypatch.setattr(module, "MIN_BLOCK_BYTES", 0)
    layer = sum(int(np.prod(weight.shape)) for weight in graph if weight.role.layer == 0)
    assert block_tokens(graph) == layer // (COPIES * 256)
    monkeypatch.setattr(module, "MAX_BLOCK_BYTES", 1)
    assert block_tokens(graph) == 1
    assert MAX_BLOCK_BYTES < 1 << 30


def test_a_disk_without_room_is_refused_by_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    check_disk(1000, tmp_path / "not" / "yet")
    with pytest.raises(OutputError, match=r"yet: 1000000\.00 GB are needed for unfinished work and .* GB are free"):
        check_disk(10**15, tmp_path / "not" / "yet")
    assert not list(tmp_path.iterdir())
