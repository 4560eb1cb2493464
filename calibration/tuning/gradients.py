"""One pass forwards and back through the quantized model: how its divergence depends on norms and scales.

Shapes: T tokens of one window, O out, I in, D hidden, R rows of a block
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.sensitivity.backward import Passed, backward
from qwen3_export.calibration.tuning.divergence import Answers, head_gradient
from qwen3_export.graph import Graph, Kind, Role, module_name
from qwen3_export.parallel import run_jobs
from qwen3_export.quantizers.weights.tuned import TunedWeight

__all__ = ["gradients"]

Values = NDArray[np.float32]

VALUES_PER_JOB = 1 << 20


def gradients(
    graph: Graph,
    tuned: Graph,
    windows: Sequence[Tensor],
    expected: Answers,
    weights_P: Tensor,
    found: dict[str, Values],
    *,
    folder: Path,
    threads: int,
) -> None:
    """Add the derivatives of Σ weight · KL divergence of ``tuned`` from ``graph`` on these windows to ``found``.

    ``weights_P`` are those of all positions, window by window. ``found`` has an array of zeros for each weight that is
    tuned, in the shape of its changes.
    """
    sums = _Sums(tuned=tuned, found=found, threads=threads)
    backward(
        tuned,
        windows,
        sums.visit,
        folder=folder,
        head_gradient=lambda final: head_gradient(graph, expected, tuned, final, weights_P, sums.visit_head_rows),
        visit_norm=sums.visit_norm,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Derivatives by changes, as gradients by values come."""

    tuned: Graph
    found: dict[str, Values]
    threads: int

    def visit_norm(self, role: Role, gradient: Tensor) -> None:
        name = module_name(role)
        self.found[name] += (gradient * torch.from_numpy(np.array(self.tuned[role].read()))).numpy()

    def visit(self, role: Role, passed: Passed) -> None:
        if module_name(role) not in self.found or not passed.gradients:
            return
        if role.kind is Kind.EMBED_TOKENS:
            self._visit_embedding(role, passed)
            return
        by_outputs = passed.gradients if passed.own_gradients is None else passed.own_gradients
        gradient_OI = torch.cat(list(by_outputs)).T @ torch.cat(list(passed.inputs))
        self._add(role, slice(0, len(gradient_OI)), gradient_OI)

    def visit_head_rows(self, rows: slice, gradient_RD: Tensor) -> None:
        if self.tuned.head.name in self.found:
            self._add(self.tuned.head.role, rows, gradient_RD)

    def _visit_embedding(self, role: Role, passed: Passed) -> None:
        """Only rows of tokens that occur have a gradient."""
        tokens_P, gradient_PD = torch.cat(list(passed.inputs))[:, 0], torch.cat(list(passed.gradients))
        count, width = self.tuned[role].shape
        step = self._step(role)
        for block in torch.unique(tokens_P // step).tolist():
            rows = slice(block * step, min((block + 1) * step, count))
            within_P = (tokens_P >= rows.start) & (tokens_P < rows.stop)
            gradient_RD = torch.zeros(rows.stop - rows.start, width)
            gradient_RD.index_add_(0, tokens_P[within_P] - rows.start, gradient_PD[within_P])
            self._add(role, rows, gradient_RD)

    def _add(self, role: Role, rows: slice, gradient_RI: Tensor) -> None:
        """Add what follows from a gradient by the values of some rows, whole tables."""
        weight = self.tuned[role]
        assert isinstance(weight, TunedWeight)
        number_format, found = weight.number_format, self.found[weight.name]
        together, gradient = weight.shape[0] // len(found), gradient_RI.numpy()

        def work(first: int) -> None:
            part = slice(first, min(first + step, rows.stop))
            codes_RI, params = weight.encode(part)
            by_changes = number_format.by_changes(
                codes_RI, params, gradient[first - rows.start : part.stop - rows.start]
            )
            found[part.start // together : part.stop // together] += by_changes

        step = self._step(role)
        run_jobs(work, range(rows.start, rows.stop, step), threads=self.threads)

    def _step(self, role: Role) -> int:
        """Rows of a job: some whole tables."""
        weight = self.tuned[role]
        assert isinstance(weight, TunedWeight)
        together = weight.shape[0] // len(weight.changes)
        return max(1, VALUES_PER_JOB // weight.shape[1] // together) * together
