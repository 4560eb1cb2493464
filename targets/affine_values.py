"""Compare values in affine blocks with the checkpoint's: the limits that ``parity.values`` applies.

In blocks of n columns with a step of s times the largest magnitude, the error of a block relative to its values is at
most s·sqrt(n/12), where all but one value are near zero; twice that is allowed, and less than 1, which is what a block
read as zeros would give. A whole matrix may be about three times what round-to-nearest gives on trained weights in
blocks of 32, a little more in wider ones, whose largest magnitudes are larger.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.values import Limits, ValueCheck, compare_values
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.weights.protocols import code_format

__all__ = ["affine_limits", "check_affine_values"]

TENSOR_LIMIT_AT_4_BITS, MOST = 0.28, 0.95


def check_affine_values(
    stored: Graph, expected: Graph, *, is_full: bool, is_solved: bool, digests: Mapping[str, str] | None = None
) -> ValueCheck:
    """Compare the values read back (``stored``) with the graph that was meant to be stored.

    ``is_solved``: a solver may have chosen them; ``digests`` are what the artifact records of that.
    """
    return compare_values(stored, expected, limits=affine_limits, is_full=is_full, is_solved=is_solved, digests=digests)


def affine_limits(weight: Weight) -> Limits | None:
    """The limits of a weight in affine blocks; None for other formats."""
    number_format = code_format(weight)
    if not isinstance(number_format, AffineFormat):
        return None
    bits, size = number_format.num_bits, number_format.columns_a_group(weight.shape[1])
    steps = 1 << (bits - 1)
    block = 2 * (size / 12) ** 0.5 / steps
    tensor = TENSOR_LIMIT_AT_4_BITS * 8 / steps * (size / 32) ** 0.25
    return Limits(tensor=min(tensor, MOST), block=min(block, MOST), block_size=size)
