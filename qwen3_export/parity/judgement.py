"""From measured numbers to what is in bounds: the same rules for every target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from numpy import float32
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError, QuantizationError
from qwen3_export.graph import Graph
from qwen3_export.parity.compare import ShippedNumbers
from qwen3_export.parity.metrics import Comparison
from qwen3_export.parity.report import Decode, Gates
from qwen3_export.quantizers.transforms import Fold, fold

__all__ = [
    "DECODE_BOUND",
    "ROUNDING_METHODS",
    "decode_text",
    "judge_decode",
    "judge_end_to_end",
    "longest_text",
    "moved_by",
    "shipped_bound",
]

Scales = Mapping[Fold, NDArray[float32]]

# The floor models the runtime's arithmetic, and is met within some 10 %; twice it leaves room for other kernels. The
# constant is for artifacts whose floor is next to nothing.
SHIPPED_FLOORS, SHIPPED_CONSTANT = 2.0, 1e-8
# fp32, another order of summation: 5e-6 (llama.cpp) and 2e-5 (onnxruntime) measured.
DECODE_BOUND = 1e-3
# fp32 again: 1e-6 measured.
CACHE_BOUND = 1e-4

QUICK_DECODE_TOKENS, FULL_DECODE_TOKENS = 40, 128
MAX_TEXT_TOKENS = 1024

# Methods whose values are the nearest ones; others aim elsewhere. (Of an unknown one, the worst is assumed.)
ROUNDING_METHODS = frozenset({"rtn", "awq"})


def moved_by(graph: Graph, read_scales: Callable[[], Scales]) -> tuple[Graph, list[str]]:
    """The graph whose values an artifact was to store: an equal function, under the scales that it records.

    And what is wrong with those, where they cannot be read or moved.
    """
    try:
        return fold(graph, read_scales()), []
    except (CheckpointError, QuantizationError) as error:
        return graph, [str(error)]


def longest_text(graph: Graph) -> int:
    return min(MAX_TEXT_TOKENS, graph.config.context_length)


def decode_text(texts: Sequence[Sequence[int]], *, is_full: bool) -> list[int]:
    """What runs token by token: the start of the longest text."""
    return list(max(texts, key=len)[: FULL_DECODE_TOKENS if is_full else QUICK_DECODE_TOKENS])


def shipped_bound(floor: Comparison, *, floors: float = SHIPPED_FLOORS) -> float | None:
    """The mean KLD that the shipped artifact may have; None without a floor."""
    return None if floor.mean_kld is None else floors * floor.mean_kld + SHIPPED_CONSTANT


def judge_decode(
    exact: float | None,
    shipped: float | None,
    numbers: ShippedNumbers,
    *,
    floors: float = SHIPPED_FLOORS,
    cache: float | None = None,
) -> Decode:
    """As shipped, chunks and prefill differ as two roundings do: twice the floor's largest logit difference."""
    if exact is None or shipped is None or numbers.floor.max_abs is None:
        return Decode()
    bound = floors * numbers.floor.max_abs + DECODE_BOUND
    is_cached_right = cache is None or cache <= CACHE_BOUND
    return Decode(
        max_abs_vs_prefill=exact,
        bound=DECODE_BOUND,
        shipped_max_abs_vs_prefill=shipped,
        shipped_bound=bound,
        cache_relative=cache,
        cache_bound=None if cache is None else CACHE_BOUND,
        status="pass" if exact <= DECODE_BOUND and shipped <= bound and is_cached_right else "fail",
    )


def judge_end_to_end(numbers: ShippedNumbers, gates: Gates) -> tuple[Comparison, list[str]]:
    """``end_to_end`` under the user's bounds, and one sentence for each that is not kept."""
    failures = gates.failures(numbers.end_to_end)
    judged = numbers.end_to_end.judged(gates.max_mean_kld)
    return (replace(judged, status="fail") if failures else judged), failures
