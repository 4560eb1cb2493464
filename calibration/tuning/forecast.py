"""Estimate what tuning takes: passes forwards and back through the quantized model, and one through the fp32 model.

Products are counted, and taken at a measured rate; decoding takes the seconds that were measured once for a weight.

Shapes: D hidden
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from qwen3_export.calibration.estimates import multiplications_a_second, seen_tokens
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.sensitivity.forecast import backward_bytes
from qwen3_export.calibration.tuning.run import TuneSettings, num_steps
from qwen3_export.calibration.tuning.text import TuningText
from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.formats import NumberFormat

__all__ = ["tuning_forecast"]

FP32_BYTES = 4
# Forwards, forwards again on the way back, gradients of inputs, gradients of weights.
PASSES = 4
# Of the head: normalizers, logits of both models, gradients of inputs and of weights.
HEAD_PASSES = 5
# Seconds of one thread to decode a weight, and how often a step does so.
SECONDS_PER_DECODED, DECODED = 1e-8, 3
# Changes, a gradient, both of Adam's means, and one of these in the making.
COPIES = 5


def tuning_forecast(
    graph: Graph,
    formats: Mapping[str, NumberFormat],
    text: TuningText,
    *,
    settings: TuneSettings | None = None,
    threads: int,
) -> Forecast:
    """The estimate for all steps, and for comparing on what was held back."""
    settings = settings or TuneSettings()
    steps, batch = num_steps(text, settings), min(settings.batch_tokens, text.num_tokens)
    held = sum(map(len, text.held_back))
    matrices = [weight for weight in graph if len(weight.shape) == 2]
    head = graph.head
    products = sum(
        (PASSES * steps * seen_tokens(weight, graph, batch) + seen_tokens(weight, graph, text.num_tokens + 3 * held))
        * math.prod(weight.shape)
        for weight in matrices
        if weight.role.layer is not None
    )
    products += (HEAD_PASSES * steps * batch + text.num_tokens + 4 * held) * math.prod(head.shape)
    decoded = DECODED * steps * sum(math.prod(weight.shape) for weight in matrices) * SECONDS_PER_DECODED
    changes = sum(_changes(weight, formats[weight.name]) for weight in graph)
    states = (text.num_tokens + held) * graph.config.hidden_size
    return Forecast(
        seconds=products / multiplications_a_second(graph.config.hidden_size) + decoded / threads,
        memory_bytes=backward_bytes(graph, batch) + FP32_BYTES * (states + COPIES * changes),
        disk_bytes=3 * FP32_BYTES * changes,
    )


def _changes(weight: Weight, number_format: NumberFormat) -> int:
    """How many numbers of a weight are tuned."""
    if weight.role.is_norm:
        return math.prod(weight.shape)
    return math.prod(number_format.changes_shape(weight.shape) or (0,))
