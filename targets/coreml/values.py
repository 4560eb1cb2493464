"""A package's values against the checkpoint's (``parity.values``): how far off palettes may be, affine blocks as ever.

The best table of E entries for normally distributed weights is 1.65 / E of them off (in the root of the mean square, E
large), for heavier tails a little more; on the demo it was 0.094 to 0.103 for 16 entries, 0.026 for 64 and 0.006 for
256. Three times as much is allowed to a whole matrix. A row that is small beside the others of its table is served
worse: twice the matrix's error was measured, eight times the matrix's limit is allowed, and less than 1, which is what
a row read as zeros would give.
"""

from __future__ import annotations

from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.values import Limits, ValueCheck, compare_values
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.weights.protocols import code_format
from qwen3_export.targets.affine_values import check_affine_values

__all__ = ["check_values"]

TENSOR_LIMIT_AT_16_ENTRIES, ROW_FACTOR, MOST = 0.3, 8, 0.95


def check_values(stored: Graph, expected: Graph, *, is_full: bool, is_solved: bool) -> ValueCheck:
    """Compare the values read back (``stored``) with the graph that was meant to be stored."""
    if any(_palette(weight) for weight in stored):
        return compare_values(stored, expected, limits=_limits, is_full=is_full, is_solved=is_solved)
    return check_affine_values(stored, expected, is_full=is_full, is_solved=is_solved)


def _limits(weight: Weight) -> Limits | None:
    palette = _palette(weight)
    if palette is None:
        return None
    tensor = TENSOR_LIMIT_AT_16_ENTRIES * 16 / (1 << palette.num_bits)
    return Limits(tensor=tensor, block=min(ROW_FACTOR * tensor, MOST), block_size=weight.shape[1])


def _palette(weight: Weight) -> PaletteFormat | None:
    """The format of a weight that has tables."""
    number_format = code_format(weight)
    return number_format if isinstance(number_format, PaletteFormat) else None
