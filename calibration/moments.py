"""Sums over tokens that a solver needs of a linear weight's inputs: see ``quantizers.gptq.hessian.Moments``.

*QK-Norm.*  What q_proj and k_proj give reaches attention through RMSNorm, so that an error in it counts as
1 / rms_h(t)² for token t and head h: their Hessian is Σ x xᵀ / rms_h(t)².  ``norm_weights`` gives these weights, for
the heads of each group (a key head, and the query heads that read it) or averaged over all heads.

Shapes: T tokens, P tokens routed to one expert, D hidden, N heads, H head_dim, I in, O out, G groups of heads
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwen3_export.quantizers.gptq.hessian import Moments

__all__ = ["MomentSums", "RelativeError", "norm_weights"]

SUMMED_COLUMNS = 256


class MomentSums:
    """Moments in the making, in fp32; the order of ``add`` decides the last bits, and nothing else does.

    ``residual_size`` is the width O of the residual stream, for weights that add to it.  ``has_cross`` is False where
    the residual says already what the inputs differ from the fp32 model's by.  Of the Hessian, which is symmetric,
    the blocks below the diagonal are not summed but copied in the end.
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
        """Inputs, the fp32 model's, what the residual stream is off by, and what each token counts for."""
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
        """Add another's sums, brought to this mass."""
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
    """The squared distance of some vectors from others, relative to the others' squares."""

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
    """What each token counts for in each of ``groups`` groups of heads, before their norm: [G, T]."""
    inverse_TN = 1 / (heads_TNH.square().mean(dim=-1) + eps)
    return inverse_TN.view(len(inverse_TN), groups, -1).mean(dim=-1).T.contiguous()
