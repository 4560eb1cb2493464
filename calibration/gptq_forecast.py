"""What a GPTQ run will take in time, memory and disk, said before it starts.

Time is counted in multiplications, at the rate that a short rehearsal reaches, and in weights to be solved, at a rate
that was measured once.  Memory and disk follow from shapes: sums and factors of the widest weight, two copies of
half a layer, and the states of all tokens, which go to disk beyond a limit.

Shapes: T tokens, D hidden, O out, I in
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.gptq_run import SequentialSettings
from qwen3_export.graph import ATTENTION, Graph, Kind, Weight
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq import SLAB_COLUMNS

__all__ = ["gptq_forecast"]

FP32_BYTES = 4

# Python, torch, numba and the tokenizer.
BASE_BYTES = 450 << 20

# Seconds of one thread to improve one weight's code and scales once (Q4_K; others take less).
SECONDS_PER_MOVE = 3e-7

INPUTS = frozenset({Kind.Q_PROJ, Kind.O_PROJ, Kind.GATE_PROJ, Kind.DOWN_PROJ})
ADDING = frozenset({Kind.O_PROJ, Kind.DOWN_PROJ})


def gptq_forecast(
    graph: Graph,
    formats: Mapping[str, str],
    windows: Sequence[NDArray[np.int64]],
    *,
    settings: SequentialSettings | None = None,
    threads: int = 1,
) -> Forecast:
    """For a run from its beginning; one that goes on with what an earlier one left takes less."""
    settings, num_tokens = settings or SequentialSettings(), sum(map(len, windows))
    rate = _multiplications_a_second(graph.config.hidden_size)
    work = sum(_multiplications(weight, graph, num_tokens) for weight in graph if len(weight.shape) == 2)
    moves = sum(_moves(weight, settings) for weight in graph if GGML_FORMATS[formats[weight.name]].block_size > 1)
    held, spilled = _states(graph, num_tokens, limit=settings.memory_limit)
    stored = sum(_num_bytes(weight, formats[weight.name]) for weight in graph)
    return Forecast(
        seconds=work / rate + moves * SECONDS_PER_MOVE / threads,
        memory_bytes=BASE_BYTES + held + FP32_BYTES * (2 * _half_layer(graph) + _solving(graph)),
        disk_bytes=stored + spilled,
    )


def _multiplications(weight: Weight, graph: Graph, num_tokens: int) -> float:
    """Of both models' products with a weight, of the sums over its inputs, and of its solution."""
    rows, columns = weight.shape
    kind, config = weight.role.kind, graph.config
    if kind is Kind.EMBED_TOKENS and not config.tie_word_embeddings:
        return 0
    if weight.role.expert is not None:
        num_tokens = math.ceil(num_tokens * config.num_experts_per_tok / config.num_experts)
    products = 2 * rows * columns * num_tokens if weight.role.layer is not None else 0
    sums = 2 * columns**2 * num_tokens if kind in INPUTS else 0
    sums += config.hidden_size * columns * num_tokens if kind in ADDING else 0
    # Factoring and inverting are in fp64, which takes twice as long.
    return products + sums + 2 * columns**3 + 4 * rows * columns**2


def _moves(weight: Weight, settings: SequentialSettings) -> int:
    solver, is_one_slab = settings.solver, weight.shape[-1] <= SLAB_COLUMNS
    return math.prod(weight.shape) * (1 + solver.rounds * (1 + (0 if is_one_slab else solver.cycles)))


def _states(graph: Graph, num_tokens: int, *, limit: int) -> tuple[int, int]:
    """Bytes of token states held in memory, and on disk: both streams, and the inputs of the widest weight."""
    config = graph.config
    widths = [config.hidden_size] * (6 if config.is_moe else 2)
    widths.append(max(_widest(graph, lambda weight: weight.role.expert is None), config.hidden_size))
    sizes = [FP32_BYTES * num_tokens * width for width in widths]
    return sum(size for size in sizes if size <= limit), sum(size for size in sizes if size > limit)


def _solving(graph: Graph) -> int:
    """Numbers held while the largest weight is solved: the sums, and two factors, the damped Hessian and the
    identity in fp64; and the weight, its target, its values and codes, what is left of it, and its gradient."""
    columns = _widest(graph, lambda _: True)
    largest = max(math.prod(weight.shape) for weight in graph)
    return 3 * columns**2 + 8 * columns**2 + 6 * largest


def _half_layer(graph: Graph) -> int:
    """Parameters of the larger half of the first layer, or of its attention where the rest is experts."""
    first = [weight for weight in graph if weight.role.layer == 0 and weight.role.expert is None]
    attention = sum(math.prod(weight.shape) for weight in first if weight.role.kind in ATTENTION)
    return max(attention, sum(math.prod(weight.shape) for weight in first) - attention)


def _widest(graph: Graph, chosen: object) -> int:
    assert callable(chosen)
    return max((weight.shape[1] for weight in graph if len(weight.shape) == 2 and chosen(weight)), default=0)


def _num_bytes(weight: Weight, format_name: str) -> int:
    return math.prod(weight.shape[:-1]) * GGML_FORMATS[format_name].row_bytes(weight.shape[-1])


def _multiplications_a_second(hidden_size: int) -> float:
    """The rate of the products that a run is made of, windows of 512 tokens."""
    x_TD, weight_DD = torch.ones(512, hidden_size), torch.ones(hidden_size, hidden_size)
    torch.mm(x_TD, weight_DD)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.05:
        torch.mm(x_TD, weight_DD)
        count += 1
    return count * 512 * hidden_size**2 / (time.perf_counter() - started)
