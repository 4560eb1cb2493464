"""Estimate what measuring formats takes: the pass back through the model, and rounding every weight to every format.

Products are counted, and taken at a measured rate; rounding takes the seconds that were measured once for a weight.
Memory follows from shapes: token states, half a layer, and what passed through it.

Shapes: P positions, D hidden, O out, I in
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qwen3_export.calibration.estimates import BASE_BYTES, multiplications_a_second, seen_tokens
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.sensitivity.losses import MAX_HEAD_ROWS, MAX_ROWS
from qwen3_export.calibration.window_states import MEMORY_LIMIT
from qwen3_export.graph import ATTENTION, Graph, Weight
from qwen3_export.quantizers.formats import NumberFormat

__all__ = ["backward_bytes", "backward_products", "sensitivity_forecast"]

FP32_BYTES = 4
# Forwards, forwards again on the way back, and back.
PASSES = 3
# Seconds of one thread to round a weight to a format: K-quants, the slowest; 0.6B's shapes.
SECONDS_PER_ROUNDING = 1.5e-7


def sensitivity_forecast(
    graph: Graph, candidates: Mapping[str, Sequence[NumberFormat]], *, num_tokens: int, verified: int, threads: int
) -> Forecast:
    """The estimate for measuring all candidates on ``num_tokens``, and comparing two choices on ``verified``."""
    products, rounded = backward_products(graph, num_tokens), 0.0
    for name, formats in candidates.items():
        weight = graph.weights[name]
        rows = min(weight.shape[0], MAX_HEAD_ROWS if weight.role.layer is None else MAX_ROWS)
        products += len(formats) * rows * weight.shape[-1] * seen_tokens(weight, graph, num_tokens)
        rounded += (len(formats) * rows + 2 * weight.shape[0]) * weight.shape[-1]
    products += 3 * sum(math.prod(weight.shape) * seen_tokens(weight, graph, verified) for weight in _matrices(graph))
    seconds = products / multiplications_a_second(graph.config.hidden_size)
    return Forecast(
        seconds=seconds + rounded * SECONDS_PER_ROUNDING / threads,
        memory_bytes=backward_bytes(graph, num_tokens),
        disk_bytes=_states_bytes(graph, num_tokens) - _held_states(graph, num_tokens),
    )


def backward_products(graph: Graph, num_tokens: int) -> float:
    """Multiplications of one pass forwards and back through all weights."""
    return PASSES * sum(math.prod(weight.shape) * seen_tokens(weight, graph, num_tokens) for weight in _matrices(graph))


def backward_bytes(graph: Graph, num_tokens: int) -> int:
    """Memory of such a pass: states, gradients, half a layer of weights, and inputs and gradients of its outputs."""
    first = [weight for weight in _matrices(graph) if weight.role.layer == 0 and (weight.role.expert or 0) == 0]
    attention = [weight for weight in first if weight.role.kind in ATTENTION]
    halves = [attention, [weight for weight in first if weight not in attention]]
    passed = max(sum(sum(weight.shape) * seen_tokens(weight, graph, num_tokens) for weight in half) for half in halves)
    held = max(sum(math.prod(weight.shape) for weight in half) for half in halves)
    stream = num_tokens * graph.config.hidden_size
    return BASE_BYTES + _held_states(graph, num_tokens) + FP32_BYTES * (passed + held + 3 * stream)


def _matrices(graph: Graph) -> list[Weight]:
    """Weights that multiply: all but norms, and an embedding that is only looked up."""
    return [weight for weight in graph if len(weight.shape) == 2 and _multiplies(weight, graph)]


def _multiplies(weight: Weight, graph: Graph) -> bool:
    return weight.role.layer is not None or weight.name == graph.head.name


def _states_bytes(graph: Graph, num_tokens: int) -> int:
    return FP32_BYTES * num_tokens * graph.config.hidden_size * (graph.config.num_hidden_layers + 1)


def _held_states(graph: Graph, num_tokens: int) -> int:
    """Bytes of the residual streams that stay in memory: all, or none where one layer's are over its share."""
    total = _states_bytes(graph, num_tokens)
    return total if total <= MEMORY_LIMIT else 0
