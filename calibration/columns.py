"""Statistics of the inputs of a matrix: a few numbers for each of its columns.

Sums of squares weigh rounding errors (llama.cpp's importance matrix holds only these). Sums of magnitudes give AWQ's
measure of a channel. Largest magnitudes are the ranges that int8 activations and fp16 must hold. An expert sees only
some tokens, and its output is multiplied with a share for each: ``squared_shares_E`` is the sum of the squared shares,
which weigh errors as they arrive in the residual stream. Without routing it is the count.

Sums are taken in fp32 within a window and in fp64 across windows. That is as exact as fp64 throughout to 1e-7, which is
the precision of fp32, and as fast as fp32.

Shapes: T tokens, E experts or heads (1 for an ordinary matrix), I input columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["ColumnAccumulator", "ColumnStatistics"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ColumnStatistics:
    """Statistics of each column of a matrix, of each expert's matrix, or of each head; zeros without any input."""

    sum_of_squares_EI: Floats
    sum_of_magnitudes_EI: Floats
    max_magnitude_EI: Floats
    count_E: NDArray[np.int64]
    squared_shares_E: Floats

    @property
    def largest(self) -> float:
        """The largest magnitude of all."""
        return float(self.max_magnitude_EI.max())

    @property
    def largest_column(self) -> int:
        """The column of the largest magnitude."""
        return int(self.max_magnitude_EI.max(axis=0).argmax())

    def expert(self, expert: int) -> ColumnStatistics:
        """One expert's row, as statistics of one matrix."""
        rows = slice(expert, expert + 1)
        return ColumnStatistics(
            sum_of_squares_EI=self.sum_of_squares_EI[rows],
            sum_of_magnitudes_EI=self.sum_of_magnitudes_EI[rows],
            max_magnitude_EI=self.max_magnitude_EI[rows],
            count_E=self.count_E[rows],
            squared_shares_E=self.squared_shares_E[rows],
        )


class ColumnAccumulator:
    """Adds inputs up to statistics; the last bits depend on the order of calls, and on nothing else."""

    def __init__(self, experts: int, columns: int) -> None:
        self._squares_EI = torch.zeros(experts, columns, dtype=torch.float64)
        self._magnitudes_EI = torch.zeros(experts, columns, dtype=torch.float64)
        self._max_EI = torch.zeros(experts, columns)
        self._count_E = torch.zeros(experts, dtype=torch.int64)
        self._squared_shares_E = torch.zeros(experts, dtype=torch.float64)

    def add(self, x_TI: Tensor, *, expert: int = 0, shares_T: Tensor | None = None) -> None:
        """Add inputs of one matrix, and for an expert the share that its output gets for each token."""
        self._add(x_TI[:, None], slice(expert, expert + 1), shares_T)

    def add_heads(self, x_TEI: Tensor) -> None:
        """Add vectors of all heads."""
        self._add(x_TEI, slice(None), None)

    def result(self) -> ColumnStatistics:
        return ColumnStatistics(
            sum_of_squares_EI=self._squares_EI.float().numpy(),
            sum_of_magnitudes_EI=self._magnitudes_EI.float().numpy(),
            max_magnitude_EI=self._max_EI.numpy(),
            count_E=self._count_E.numpy(),
            squared_shares_E=self._squared_shares_E.float().numpy(),
        )

    def _add(self, x_TEI: Tensor, rows: slice, shares_T: Tensor | None) -> None:
        tokens = x_TEI.shape[0]
        magnitudes_TEI = x_TEI.abs()
        self._squares_EI[rows] += x_TEI.square().sum(dim=0)
        self._magnitudes_EI[rows] += magnitudes_TEI.sum(dim=0)
        self._max_EI[rows] = torch.maximum(self._max_EI[rows], magnitudes_TEI.amax(dim=0))
        self._count_E[rows] += tokens
        self._squared_shares_E[rows] += tokens if shares_T is None else shares_T.square().sum().item()
