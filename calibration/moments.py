"""Add up the inputs of a linear weight to the sums that GPTQ needs (``quantizers.gptq.hessian.Moments``).

*QK-Norm.* The outputs of q_proj and k_proj reach attention through RMSNorm, so that a squared error of token t and head
h counts with 1 / rms_h(t)²: the Hessian is Σ x xᵀ / rms_h(t)². ``norm_weights`` gives these factors, for each group of
heads (a key head, or the query heads that read it) or averaged over all heads.

Shapes: T tokens, P tokens routed to one expert, D hidden, N heads, H head_dim, I in, O out, G groups of heads
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3_export.quantizers.gptq.hessian import Moments

__all__ = ["MomentSums", "RelativeError", "norm_weights"]

SUMMED_COLUMNS = 256


class MomentSums:
    """Adds inputs up in fp32; the last bits depend on the order of calls, and on nothing else.

    ``residual_size`` is the width O of the residual stream, for weights that add to it. ``has_cross`` is False where
    the residual already includes the effect of inputs that differ from the fp32 model's. The Hessian is symmetric; its
    blocks below the diagonal are not summed but copied in the end.
    """

    def __init__(self, columns: int, *, residual_size: int = 0, has_cross: bool = True) -> None:
        self.hessian_II = torch.zeros(columns, columns)
        self.cross_II = torch.zeros(columns, columns) if has_cross else None
        self.residual_OI = torch.zeros(residual_size, columns) if residual_size else None
        self.tokens = 0
        self.mass = 0.0

    def add(
        self,
        x_PI: Tensor,
        exact_PI: Tensor | None = None,
        *,
        residual_PO: Tensor | None = None,
        weight_P: Tensor | None = None,
    ) -> None:
        """Add inputs, the fp32 model's inputs, the errors of the residual stream, and a weight for each token."""
        weighted_PI = x_PI if weight_P is None else x_PI * weight_P[:, None]
        for first in range(0, x_PI.shape[1], SUMMED_COLUMNS):
            block = slice(first, first + SUMMED_COLUMNS)
            self.hessian_II[block, first:].addmm_(weighted_PI[:, block].T, x_PI[:, first:])
        if self.cross_II is not None and exact_PI is not None:
            self.cross_II.addmm_(exact_PI.T, weighted_PI)
        if self.residual_OI is not None and residual_PO is not None:
            self.residual_OI.addmm_(residual_PO.T, weighted_PI)
        self.tokens += len(x_PI)
        self.mass += len(x_PI) if weight_P is None else float(weight_P.sum())

    def add_share(self, other: MomentSums, mass: float) -> None:
        """Add the sums of another, scaled to the mass (the sum of token weights) ``mass``."""
        if not other.mass:
            return
        share = mass / other.mass
        self.hessian_II.add_(other.hessian_II, alpha=share)
        if self.cross_II is not None and other.cross_II is not None:
            self.cross_II.add_(other.cross_II, alpha=share)
        if self.residual_OI is not None and other.residual_OI is not None:
            self.residual_OI.add_(other.residual_OI, alpha=share)
        self.mass += mass

    def moments(self) -> Moments:
        for first in range(0, len(self.hessian_II), SUMMED_COLUMNS):
            last = first + SUMMED_COLUMNS
            self.hessian_II[last:, first:last] = self.hessian_II[first:last, last:].T
        return Moments(hessian_II=self.hessian_II, cross_II=self.cross_II, residual_OI=self.residual_OI)


class RelativeError:
    """Sums up the squared distance of vectors from wanted ones, relative to the squares of the wanted ones."""

    def __init__(self) -> None:
        self._distance = 0.0
        self._square = 0.0

    def add(self, found: Tensor, wanted: Tensor) -> None:
        self._distance += float((found - wanted).square().sum())
        self._square += float(wanted.square().sum())

    @property
    def share(self) -> float:
        return self._distance / (self._square or 1.0)


def norm_weights(heads_TNH: Tensor, *, groups: int, eps: float) -> Tensor:
    """The weight of each token in each of ``groups`` groups of heads, [G, T], from the heads before their norm."""
    inverse_TN = 1 / (heads_TNH.square().mean(dim=-1) + eps)
    return inverse_TN.view(len(inverse_TN), groups, -1).mean(dim=-1).T.contiguous()
