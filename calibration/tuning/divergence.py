"""The KL divergence of a model from the fp32 model, and its gradient, without holding all logits of a few windows.

The head is read in blocks of rows. The fp32 model's final hidden states and normalizers are computed once for all
texts; the logits of both models are computed again where they are needed.

Shapes: T tokens of one window, P positions of some windows, D hidden, R rows of a block, V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_export.graph import Graph
from qwen3_export.quantizers.weights.protocols import code_format
from qwen3_export.reference.model import forward
from qwen3_export.reference.weights import read_tensor

__all__ = ["Answers", "answers", "divergences", "head_gradient"]

# Logits of one model held at once: 64 MB.
LOGITS_HELD = 1 << 24

# Called with the rows, and the derivative [R, D] by their values.
VisitRows = Callable[[slice, Tensor], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """The fp32 model's distributions: its final hidden states, [T, D] of each window, and log Σ exp of its logits."""

    hidden: Sequence[Tensor]
    normalizers: Sequence[Tensor]

    def of(self, windows: Sequence[int]) -> Answers:
        """Those of some windows."""
        return Answers(hidden=[self.hidden[i] for i in windows], normalizers=[self.normalizers[i] for i in windows])


@torch.inference_mode()
def answers(graph: Graph, windows: Sequence[Tensor]) -> Answers:
    """The distributions at all positions of windows of token ids, [T] each."""
    hidden = forward(graph, windows)
    sums_P = _normalizers(graph, torch.cat(hidden))
    # Ordinary tensors: gradients are taken beside them later.
    return Answers(
        hidden=[part.clone() for part in hidden],
        normalizers=list(torch.split(sums_P.clone(), [len(part) for part in hidden])),
    )


def divergences(graph: Graph, expected: Answers, tuned: Graph, final: Sequence[Tensor]) -> Tensor:
    """KL(fp32 model ‖ tuned model) at all positions, [P] fp64; ``final`` are the tuned model's states, [T, D] each."""
    found_PD, exact_PD = torch.cat(list(final)), torch.cat(list(expected.hidden))
    exact_P, found_P = torch.cat(list(expected.normalizers)), _normalizers(tuned, found_PD)
    sums_P = torch.zeros(len(found_PD), dtype=torch.float64)
    for _, exact_RD, found_RD in _both_heads(graph, tuned, positions=len(found_PD)):
        log_p_PR = exact_PD @ exact_RD.T - exact_P[:, None]
        log_q_PR = found_PD @ found_RD.T - found_P[:, None]
        sums_P += (log_p_PR.exp() * (log_p_PR - log_q_PR)).sum(dim=1, dtype=torch.float64)
    return sums_P


def head_gradient(
    graph: Graph, expected: Answers, tuned: Graph, final: Sequence[Tensor], weights_P: Tensor, visit_rows: VisitRows
) -> list[Tensor]:
    """The gradient [T, D] of Σ weight · KL divergence over all positions, by the final hidden states of each window.

    ``visit_rows`` is told the gradient by the head's own values, block of rows by block of rows.
    """
    found_PD, exact_PD = torch.cat(list(final)), torch.cat(list(expected.hidden))
    exact_P, found_P = torch.cat(list(expected.normalizers)), _normalizers(tuned, found_PD)
    gradient_PD = torch.zeros_like(found_PD)
    for rows, exact_RD, found_RD in _both_heads(graph, tuned, positions=len(found_PD)):
        difference_PR = (found_PD @ found_RD.T).sub_(found_P[:, None]).exp_()
        difference_PR -= (exact_PD @ exact_RD.T).sub_(exact_P[:, None]).exp_()
        difference_PR *= weights_P[:, None]
        gradient_PD += difference_PR @ found_RD
        visit_rows(rows, difference_PR.T @ found_PD)
    return list(torch.split(gradient_PD, [len(part) for part in final]))


def _both_heads(graph: Graph, tuned: Graph, *, positions: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of the head: which, and their values in both models."""
    for rows in _row_blocks(tuned, positions):
        yield rows, read_tensor(graph.head, rows), read_tensor(tuned.head, rows)


def _normalizers(graph: Graph, hidden_PD: Tensor) -> Tensor:
    """log Σ exp of the logits at each position, [P]."""
    sums_P = torch.full((len(hidden_PD),), float("-inf"))
    for rows in _row_blocks(graph, len(hidden_PD)):
        block_P = torch.logsumexp(hidden_PD @ read_tensor(graph.head, rows).T, dim=1)
        sums_P = torch.logaddexp(sums_P, block_P)
    return sums_P


def _row_blocks(graph: Graph, positions: int) -> Iterator[slice]:
    """Blocks of rows of the head, the fewer the more positions; whole tables where it has some."""
    head = graph.head
    count, number_format = head.shape[0], code_format(head)
    together = 1 if number_format is None else number_format.rows_together or count
    step = max(1, LOGITS_HELD // positions // together) * together
    for first in range(0, count, step):
        yield slice(first, min(first + step, count))
