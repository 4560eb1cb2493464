"""Estimate how much time, memory and disk an AWQ run will take.

Time is measured on the first layer: its weights are rounded and read, and one window passes through them.

Shapes: T tokens of one window, D hidden
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.calibration.awq.run import judged_windows
from qwen3_export.calibration.awq.search import ALPHAS
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.graph import Graph
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.weights.rounded import RoundedWeight
from qwen3_export.reference.model import run_layer
from qwen3_export.reference.weights import embed

__all__ = ["awq_forecast"]

FP32_BYTES = 4

# Of Python, torch, numba and the tokenizer.
BASE_BYTES = 450 << 20

# Places of a layer that are searched, and the most copies of all hidden states at any time.
PLACES, COPIES = 4, 5


@torch.inference_mode()
def awq_forecast(graph: Graph, formats: Mapping[str, NumberFormat], windows: Sequence[NDArray[np.int64]]) -> Forecast:
    """The estimate for a whole run; a run that is resumed takes less."""
    config, candidates = graph.config, len(ALPHAS) + 1
    rounding, passing = _rehearse(graph, formats, max(windows, key=len))
    judged = len(judged_windows(windows))
    # A candidate rounds the weights behind its place (all places together: a layer) and passes the whole layer.
    layer_seconds = candidates * (rounding + PLACES * judged * passing) + len(windows) * passing
    tokens = sum(map(len, windows))
    layer_bytes = FP32_BYTES * sum(math.prod(weight.shape) for weight in graph if weight.role.layer == 0)
    columns = sum(weight.shape[1] for weight in graph if len(weight.shape) == 2)
    return Forecast(
        seconds=config.num_hidden_layers * layer_seconds,
        memory_bytes=BASE_BYTES + COPIES * FP32_BYTES * tokens * config.hidden_size + 2 * layer_bytes,
        disk_bytes=2 * FP32_BYTES * columns,
    )


def _rehearse(graph: Graph, formats: Mapping[str, NumberFormat], window_T: NDArray[np.int64]) -> tuple[float, float]:
    """Seconds to round and read the first layer's weights, and to pass one window through it."""
    hidden = [embed(graph, torch.from_numpy(np.asarray(window_T, np.int64)))]
    run_layer(graph, 0, hidden=hidden)  # starts threads and fills the page cache
    started = time.perf_counter()
    run_layer(graph, 0, hidden=hidden)
    passing = time.perf_counter() - started
    rounded = dict(graph.weights)
    for weight in graph:
        number_format = formats[weight.name]
        if weight.role.layer == 0 and not number_format.is_float:
            rounded[weight.name] = RoundedWeight(source=weight, number_format=number_format)
    run_layer(graph.with_weights(MappingProxyType(rounded)), 0, hidden=[hidden[0][:1]])  # compiles kernels
    started = time.perf_counter()
    run_layer(graph.with_weights(MappingProxyType(rounded)), 0, hidden=hidden)
    return max(time.perf_counter() - started - passing, 0.0), passing
