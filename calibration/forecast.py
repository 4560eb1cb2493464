"""Estimate how much time, memory and disk a calibration run will take.

Time is measured: one window passes through the first layer, and the layer's attention weights are read. Most of the
memory is measured in the same way. The rest, and the disk, follow from shapes.

Shapes: T tokens of one window.
"""

from __future__ import annotations

import math
import resource
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.calibration.hidden_file import num_hidden_bytes
from qwen3_export.calibration.layer_statistics import LayerCollector
from qwen3_export.config import Qwen3Config
from qwen3_export.errors import OutputError
from qwen3_export.graph import ATTENTION, Graph, Weight
from qwen3_export.reference.model import run_layer
from qwen3_export.reference.weights import embed, read_attention
from qwen3_export.units import human_duration, human_size

__all__ = ["Forecast", "block_tokens", "check_disk", "forecast"]

FP32_BYTES = 4
MIN_BLOCK_BYTES, MAX_BLOCK_BYTES = 128 << 20, 512 << 20

# The most copies of a block's hidden states: before and after each half, after a norm, and the sum of experts.
COPIES = 5

# For each column of each matrix: three numbers in the result, and fp64 sums while it is computed.
COLUMN_BYTES, COLUMN_BYTES_IN_THE_MAKING = 12, 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will take; the disk is for unfinished work."""

    seconds: float
    memory_bytes: int
    disk_bytes: int

    def __str__(self) -> str:
        return (
            f"{human_duration(self.seconds)}, {human_size(self.memory_bytes)} of memory, "
            f"{human_size(self.disk_bytes)} of disk for unfinished work"
        )

    def then(self, later: Forecast) -> Forecast:
        """Two runs one after the other, in one folder."""
        return Forecast(
            seconds=self.seconds + later.seconds,
            memory_bytes=max(self.memory_bytes, later.memory_bytes),
            disk_bytes=self.disk_bytes + later.disk_bytes,
        )


def block_tokens(graph: Graph) -> int:
    """How many tokens pass through a layer at a time: their hidden states take about as much memory as the layer."""
    layer_bytes = FP32_BYTES * sum(_count(weight) for weight in graph if weight.role.layer == 0)
    budget = min(max(layer_bytes, MIN_BLOCK_BYTES), MAX_BLOCK_BYTES)
    return max(1, budget // (COPIES * graph.config.hidden_size * FP32_BYTES))


@torch.inference_mode()
def forecast(graph: Graph, windows: Sequence[NDArray[np.int64]], *, done_layers: int = 0) -> Forecast:
    """The estimate for the layers that are not done yet."""
    num_tokens = sum(map(len, windows))
    left = graph.config.num_hidden_layers - done_layers
    blocks = -(-num_tokens // block_tokens(graph))
    reading, passing = _rehearse(graph, max(windows, key=len))
    seconds = left * (blocks * reading + num_tokens * passing)
    return Forecast(seconds=seconds, memory_bytes=_memory(graph, windows), disk_bytes=_disk(graph.config, num_tokens))


def check_disk(needed: int, folder: Path) -> None:
    """Raise OutputError if the disk of ``folder``, which need not exist yet, has less than ``needed`` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise OutputError(
            f"{folder}: {needed / 1e9:.2f} GB are needed for unfinished work and {free / 1e9:.2f} GB are free; free "
            "some space, or choose a `work_dir` on another disk"
        )


def _rehearse(graph: Graph, window_T: NDArray[np.int64]) -> tuple[float, float]:
    """Seconds to read a layer, and to pass one token through one."""
    collector = LayerCollector(graph.config)
    hidden = [embed(graph, torch.from_numpy(np.asarray(window_T, np.int64)))]
    run_layer(graph, 0, hidden=[hidden[0][:1]], probe=collector.probe)  # starts threads and fills the page cache
    started = time.perf_counter()
    read_attention(graph, 0)
    reading = (time.perf_counter() - started) * _layer_size(graph) / _layer_size(graph, only_attention=True)
    started = time.perf_counter()
    run_layer(graph, 0, hidden=hidden, probe=collector.probe)
    passing = max(time.perf_counter() - started - reading, 0.0)
    return reading, passing / len(window_T)


def _memory(graph: Graph, windows: Sequence[NDArray[np.int64]]) -> int:
    """Bytes: the most so far (half a layer, the inner states of a window), a block of windows, and the results."""
    config = graph.config
    lengths = [len(window_T) for window_T in windows]
    block = max(min(block_tokens(graph), sum(lengths)), *lengths)
    inner = max(config.intermediate_size, config.num_attention_heads * config.head_dim)
    columns = max(1, config.num_experts) * (config.hidden_size + (config.moe_intermediate_size or inner))
    results = columns * (config.num_hidden_layers * COLUMN_BYTES + COLUMN_BYTES_IN_THE_MAKING)
    return _peak_bytes() + COPIES * num_hidden_bytes(block, config.hidden_size) + results


def _peak_bytes() -> int:
    """The most memory that this process has used so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _disk(config: Qwen3Config, num_tokens: int) -> int:
    """Hidden states before and after a layer."""
    return 2 * num_hidden_bytes(num_tokens, config.hidden_size)


def _layer_size(graph: Graph, *, only_attention: bool = False) -> int:
    """Parameters of the first layer."""
    return sum(
        _count(weight)
        for weight in graph
        if weight.role.layer == 0 and (weight.role.kind in ATTENTION or not only_attention)
    )


def _count(weight: Weight) -> int:
    return math.prod(weight.shape)
