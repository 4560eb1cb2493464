"""Compare a package's values with the checkpoint's (``parity.values``), with error limits for palettes.

Affine blocks have the usual limits. For normally distributed weights, the best table of E entries (E large) has a
relative error of 1.65 / E (root mean square), and a little more for heavier tails. Measured on the demo: 0.094 to 0.103
for 16 entries, 0.026 for 64 and 0.006 for 256. A whole matrix may have three times that. A row that is small beside the
others of its table has a larger error: twice the matrix's was measured. A row may have eight times the matrix's limit,
but less than 1, the error of a row read as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping

from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.values import Limits, ValueCheck, compare_values
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.weights.protocols import code_format
from qwen3_export.targets.affine_values import affine_limits

__all__ = ["check_values"]

TENSOR_LIMIT_AT_16_ENTRIES, ROW_FACTOR, MOST = 0.3, 8, 0.95


def check_values(
    stored: Graph, expected: Graph, *, is_full: bool, is_solved: bool, digests: Mapping[str, str] | None = None
) -> ValueCheck:
    """Compare the values read back (``stored``) with the graph that was meant to be stored.

    ``is_solved``: a solver may have chosen them; ``digests`` are what the artifact records of that.
    """
    return compare_values(stored, expected, limits=_limits, is_full=is_full, is_solved=is_solved, digests=digests)


def _limits(weight: Weight) -> Limits | None:
    number_format = code_format(weight)
    if not isinstance(number_format, PaletteFormat):
        return affine_limits(weight)
    tensor = TENSOR_LIMIT_AT_16_ENTRIES * 16 / (1 << number_format.num_bits)
    return Limits(tensor=min(tensor, MOST), block=min(ROW_FACTOR * tensor, MOST), block_size=weight.shape[1])
