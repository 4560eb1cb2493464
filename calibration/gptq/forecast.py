"""Estimate how much time, memory and disk a GPTQ run will take.

Time is the number of multiplications, at a rate that is measured for a moment, and the number of weights to solve, at a
rate that was measured once. Memory and disk follow from shapes: the sums and factors of the widest weight, two copies
of half a layer, and the states of all tokens, which go to disk above a limit.

Shapes: T tokens, D hidden, O out, I in
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.estimates import BASE_BYTES, multiplications_a_second, seen_tokens
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.gptq.outputs import span_rows
from qwen3_export.calibration.gptq.run import SequentialSettings
from qwen3_export.calibration.sensitivity.forecast import backward_bytes, backward_products
from qwen3_export.graph import ATTENTION, Graph, Kind, Weight
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.gptq.solver import SLAB_COLUMNS

__all__ = ["gptq_forecast"]

FP32_BYTES, FP16_BYTES = 4, 2

# Seconds of one thread to improve the code of one weight, and its share of the scales, once (Q4_K; others take less).
SECONDS_PER_MOVE = 3e-7

INPUTS = frozenset({Kind.Q_PROJ, Kind.O_PROJ, Kind.GATE_PROJ, Kind.DOWN_PROJ})
ADDING = frozenset({Kind.O_PROJ, Kind.DOWN_PROJ})


def gptq_forecast(
    graph: Graph,
    formats: Mapping[str, NumberFormat],
    windows: Sequence[NDArray[np.int64]],
    *,
    settings: SequentialSettings | None = None,
    threads: int = 1,
) -> Forecast:
    """The estimate for a whole run; a run that is resumed takes less."""
    settings, num_tokens = settings or SequentialSettings(), sum(map(len, windows))
    rate = multiplications_a_second(graph.config.hidden_size)
    solved = [weight for weight in graph if _is_solved(weight, graph, formats[weight.name])]
    work = sum(_products(weight, graph, num_tokens) for weight in graph)
    work += sum(_solving(weight, graph, num_tokens) for weight in solved)
    moves = sum(_moves(weight, settings) for weight in solved)
    held, spilled = _states(graph, num_tokens, limit=settings.memory_limit)
    stored = sum(_file_bytes(weight, formats[weight.name]) for weight in solved)
    memory = BASE_BYTES + held + FP32_BYTES * (2 * _half_layer(graph) + _held_solving(solved))
    if settings.output_tokens:
        tokens = min(settings.output_tokens, num_tokens)
        tied = [weight for weight in solved if _is_tied(weight)]
        work += backward_products(graph, tokens)
        work += sum(_tying(weight, tokens, cycles=settings.solver.cycles) for weight in tied)
        memory = max(memory, backward_bytes(graph, tokens))
        stored += sum(FP16_BYTES * weight.shape[0] * span_rows(weight.shape[0]) for weight in tied if _is_kept(weight))
    return Forecast(
        seconds=work / rate + moves * SECONDS_PER_MOVE / threads, memory_bytes=memory, disk_bytes=stored + spilled
    )


def _is_tied(weight: Weight) -> bool:
    """Whether it is measured how errors of a weight's outputs count together."""
    role = weight.role
    return role.layer is not None and (role.expert is None or role.kind is Kind.DOWN_PROJ)


def _is_kept(weight: Weight) -> bool:
    """Whether a metric is this weight's own; experts of a layer share one."""
    return (weight.role.expert or 0) == 0


def _tying(weight: Weight, tokens: int, *, cycles: int) -> float:
    """Multiplications to sum gradients up, and to carry errors from rows to rows."""
    rows, columns = weight.shape
    return span_rows(rows) * rows * (tokens + (1 + (cycles > 0)) * columns)


def _is_solved(weight: Weight, graph: Graph, number_format: NumberFormat) -> bool:
    """Whether a weight is solved and not only rounded. An embedding that is not the head multiplies nothing."""
    looked_up = weight.role.kind is Kind.EMBED_TOKENS and not graph.config.tie_word_embeddings
    return not number_format.is_float and not looked_up


def _products(weight: Weight, graph: Graph, num_tokens: int) -> float:
    """Multiplications to pass all tokens of both models through a weight of a layer."""
    if weight.role.layer is None or len(weight.shape) < 2:
        return 0
    return 2 * math.prod(weight.shape) * seen_tokens(weight, graph, num_tokens)


def _solving(weight: Weight, graph: Graph, num_tokens: int) -> float:
    """Multiplications for the sums over a weight's inputs, for their factors, and for its solution.

    Weights with the same inputs share sums and factors, which are counted for one of them.
    """
    (rows, columns), kind = weight.shape, weight.role.kind
    solution = 4 * rows * columns**2
    if kind not in INPUTS and weight.role.layer is not None:
        return solution
    # Half of the symmetric sums, and the sums with the fp32 model's inputs or with the errors of the residual stream.
    beside = graph.config.hidden_size if kind in ADDING else columns if weight.role.layer is not None else 0
    sums = (columns / 2 + beside) * columns * seen_tokens(weight, graph, num_tokens)
    # Factoring and inverting are in fp64, which takes twice as long.
    return solution + sums + 2 * columns**3


def _moves(weight: Weight, settings: SequentialSettings) -> int:
    solver, is_one_slab = settings.solver, weight.shape[-1] <= SLAB_COLUMNS
    return math.prod(weight.shape) * (1 + solver.rounds * (1 + (0 if is_one_slab else solver.cycles)))


def _states(graph: Graph, num_tokens: int, *, limit: int) -> tuple[int, int]:
    """Bytes of token states in memory and on disk: both streams, and the inputs of the widest weight."""
    config = graph.config
    widths = [config.hidden_size] * (6 if config.is_moe else 2)
    widths.append(max(_widest(graph, lambda weight: weight.role.expert is None), config.hidden_size))
    sizes = [FP32_BYTES * num_tokens * width for width in widths]
    return sum(size for size in sizes if size <= limit), sum(size for size in sizes if size > limit)


def _held_solving(solved: Sequence[Weight]) -> int:
    """Numbers in memory while the largest weight is solved.

    These are the sums; two factors, the damped Hessian and the identity in fp64; and the weight, its target, its values
    and codes, the rest of the target, and the gradient.
    """
    columns = max((weight.shape[1] for weight in solved), default=0)
    return 11 * columns**2 + 6 * max((math.prod(weight.shape) for weight in solved), default=0)


def _half_layer(graph: Graph) -> int:
    """Parameters of the larger half of the first layer, or of its attention where the rest is experts."""
    first = [weight for weight in graph if weight.role.layer == 0 and weight.role.expert is None]
    attention = sum(math.prod(weight.shape) for weight in first if weight.role.kind in ATTENTION)
    return max(attention, sum(math.prod(weight.shape) for weight in first) - attention)


def _widest(graph: Graph, chosen: object) -> int:
    assert callable(chosen)
    return max((weight.shape[1] for weight in graph if len(weight.shape) == 2 and chosen(weight)), default=0)


def _file_bytes(weight: Weight, number_format: NumberFormat) -> int:
    """Bytes of a solved weight in the work folder."""
    return sum(kind.num_bytes for kind in number_format.array_types(weight.shape).values())
