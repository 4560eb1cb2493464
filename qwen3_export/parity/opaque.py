"""Artifacts whose weights cannot be read: another tool's, in names or layouts that are not known here.

What can be said of them is what they do: their logits against the original's, and their decoding against itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_export.graph import Graph
from qwen3_export.parity.check import RunLogits, ShippedNumbers, compare_shipped
from qwen3_export.parity.findings import Shipped
from qwen3_export.parity.metrics import NOT_RUN

__all__ = ["OPAQUE_FORM", "run_opaque"]

OPAQUE_FORM = "not run, for the artifact's weights cannot be read"


def run_opaque(original: Graph, texts: Sequence[Sequence[int]], run: RunLogits) -> Shipped:
    """``end_to_end`` alone: the artifact against the fp32 checkpoint."""
    numbers = compare_shipped(original, original, texts, run=run)
    return Shipped(numbers=ShippedNumbers(quantization=NOT_RUN, end_to_end=numbers.end_to_end))
