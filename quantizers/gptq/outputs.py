"""Count errors of a weight's outputs as the model's answers feel them, and let later rows make up for earlier ones.

GPTQ takes all outputs of a weight for equally important and independent of each other. But the loss of the whole model
is, to second order, the mean of (g · ΔW x)² with g the gradient at the outputs, and with inputs and gradients taken as
independent that is tr(G ΔW H ΔWᵀ), where G = Σ g gᵀ. So errors of two outputs that push the model's answer the same
way add up, and can be made to cancel. The rows of a weight play the part for G that its columns play for H: rows are
solved in blocks, and the targets of the rows after a block move by what takes its error back, in the proportion that
costs least under G. (Kronecker-factored curvature is Martens and Grosse's, arXiv 1503.05671; adaptive rounding with
feedback on both sides is in Tseng et al., arXiv 2505.22988.)

G is kept for spans of neighbouring rows only; errors in different spans count as independent.

Shapes: # O out  S rows of one span  B rows of one block  J columns of one slab
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_export.quantizers.gptq.hessian import factor_inverse

__all__ = ["OutputMetric", "RowBlock", "row_blocks"]

# The rows of a span are solved in about so many blocks, of so many rows.
BLOCKS = 16
FEWEST_ROWS, MOST_ROWS = 16, 64
# A share of G's mean diagonal. Gradients are few, and drawn from one text.
DAMPING = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputMetric:
    """Σ g gᵀ within each span of rows of a weight, [S, S] each, one below the other."""

    spans: tuple[Tensor, ...]

    def times(self, matrix_OI: Tensor) -> Tensor:
        """G times a matrix, [O, I]."""
        parts = torch.split(matrix_OI, [len(span_SS) for span_SS in self.spans])
        return torch.cat([span_SS @ part_SI for span_SS, part_SI in zip(self.spans, parts, strict=True)])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowBlock:
    """Rows that are solved together; ``after_SB`` carries their errors to the targets of the span's ``after`` rows."""

    rows: slice
    after: slice
    after_SB: Tensor


def row_blocks(metric: OutputMetric, *, together: int | None) -> tuple[RowBlock, ...]:
    """The blocks in order, each of whole groups of ``together`` rows, which share parameters.

    There are none where groups are not within spans, or all rows share parameters (None): rows are then independent.
    """
    if together is None or any(len(span_SS) % together for span_SS in metric.spans):
        return ()
    return tuple(block for first, span_SS in _placed(metric) for block in _blocks(span_SS, first, together=together))


def _placed(metric: OutputMetric) -> Iterator[tuple[int, Tensor]]:
    first = 0
    for span_SS in metric.spans:
        yield first, span_SS
        first += len(span_SS)


def _blocks(span_SS: Tensor, first: int, *, together: int) -> Iterator[RowBlock]:
    size = len(span_SS)
    wanted = min(max(size // BLOCKS, FEWEST_ROWS), MOST_ROWS)
    step = max(1, wanted // together) * together
    factor = factor_inverse(span_SS, damping=DAMPING)
    for start in range(0, size, step):
        own, after = slice(start, min(start + step, size)), slice(min(start + step, size), size)
        yield RowBlock(
            rows=slice(first + own.start, first + own.stop),
            after=slice(first + after.start, first + after.stop),
            after_SB=(factor.upper_II[own, after].T @ factor.root_II[own, own].T).float(),
        )
