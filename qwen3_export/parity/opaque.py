"""Compare an artifact whose weights cannot be read, because another tool wrote it with unknown names or layouts.

Their logits are compared with the original's, and their decoding with itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_export.graph import Graph
from qwen3_export.parity.compare import RunLogits, ShippedNumbers, compare_exact
from qwen3_export.parity.findings import Shipped
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.prompts import Prompt

__all__ = ["OPAQUE_FORM", "run_opaque"]

OPAQUE_FORM = "not run, for the artifact's weights cannot be read"


def run_opaque(original: Graph, prompts: Sequence[Prompt], run: RunLogits) -> Shipped:
    """Run an artifact against the fp32 checkpoint: ``end_to_end`` is the only number that this gives."""
    end_to_end = compare_exact(original, [list(prompt.tokens) for prompt in prompts], run)
    return Shipped(numbers=ShippedNumbers(quantization=NOT_RUN, end_to_end=end_to_end))
