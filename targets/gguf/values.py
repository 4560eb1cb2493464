"""Compare a GGUF file's tensors with the checkpoint's (``parity.values``), and our decoding with gguf-py's.

The error limits: if a group of n values has a step of s times its largest magnitude, rounding errors are uniform in
±s/2. So the error of the group relative to its values is at most s·sqrt(n/12), reached if all values but one are near
zero. ``BLOCK_LIMITS`` is twice that, because solvers that pass errors on, such as GPTQ, do not round to nearest; and it
is below 1, the error of a block read as zeros. ``TENSOR_LIMITS`` is about three times the error of round-to-nearest on
trained weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.values import Limits, ValueCheck, compare_values
from qwen3_export.targets.gguf.formats import FORMATS
from qwen3_export.targets.gguf.read import GgufWeight

__all__ = ["BLOCK_LIMITS", "TENSOR_LIMITS", "ValueCheck", "check_values"]

#            relative RMS error of a tensor
TENSOR_LIMITS: Mapping[str, float] = {
    "Q8_0": 0.02, "Q6_K": 0.06, "Q5_K": 0.11, "Q5_1": 0.11, "Q5_0": 0.13, "Q4_K": 0.22, "Q4_1": 0.24,
    "Q4_0": 0.28, "IQ4_NL": 0.25, "IQ4_XS": 0.25, "Q3_K": 0.45, "Q2_K": 0.80,
}  # fmt: skip

#            relative RMS error of one block
BLOCK_LIMITS: Mapping[str, float] = {
    "Q8_0": 0.03, "Q6_K": 0.08, "Q5_K": 0.22, "Q5_1": 0.22, "Q5_0": 0.22, "Q4_K": 0.45, "Q4_1": 0.45,
    "Q4_0": 0.45, "IQ4_NL": 0.45, "IQ4_XS": 0.45, "Q3_K": 0.60, "Q2_K": 0.95,
}  # fmt: skip

# gguf-py's decoding is compared on this many rows of each block of rows.
ORACLE_ROWS = 64

Progress = Callable[[int, int], None]


def check_values(
    stored: Graph,
    expected: Graph,
    *,
    is_full: bool,
    is_solved: bool = False,
    digests: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> ValueCheck:
    """Compare the values read back (``stored``, of GgufWeights) with the graph that was meant to be stored.

    ``is_solved``: a solver may have chosen them; ``digests`` are what the file records of that.
    """
    return compare_values(
        stored,
        expected,
        limits=_limits,
        is_full=is_full,
        is_solved=is_solved,
        digests=digests,
        verify=_verify,
        progress=progress,
    )


def _limits(weight: Weight) -> Limits | None:
    if weight.format not in BLOCK_LIMITS:
        return None
    return Limits(
        tensor=TENSOR_LIMITS[weight.format],
        block=BLOCK_LIMITS[weight.format],
        block_size=FORMATS[weight.format].block_size,
    )


def _verify(weight: Weight, rows: slice, ours: np.ndarray) -> str | None:
    """Check that gguf-py decodes the first of these rows to the same bits."""
    assert isinstance(weight, GgufWeight)
    part = slice(rows.start, min(rows.stop, rows.start + ORACLE_ROWS))
    if np.array_equal(weight.decoded_by("gguf-py").read(part), ours[: part.stop - part.start]):
        return None
    return f"{weight.name}: {weight.format} is decoded otherwise by gguf-py than here"
