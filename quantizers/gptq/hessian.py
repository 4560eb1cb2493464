"""The linear algebra that GPTQ needs: the inverse of a damped Hessian, and the weights to aim at.

With H = Σ x xᵀ over the inputs of a linear weight, W H Wᵀ measures its output. GPTQ needs the upper factor U of the
inverse, H⁻¹ = UᵀU. One Cholesky decomposition gives it: with columns and rows in reverse order, H = M Mᵀ with M upper
triangular, and U = M⁻¹. M is useful too: for any columns b, M_bb M_bbᵀ is the cost of an error there if the columns
after them make up for it as well as they can.

*What to aim at.* A sequential solver sees inputs x that quantized weights before have changed; in the fp32 model they
were x₀. Aiming at W itself would reproduce W x. The wanted output is W x₀, and, if the weight adds to the residual
stream, also the error r of that stream. So the target T is the least-squares solution of  T x ≈ W x₀ + r  over all
tokens,

    T = (W (Σ x₀xᵀ + λI) + Σ r xᵀ) (Σ xxᵀ + λI)⁻¹,        λ as for the damping,

which is W as long as nothing has changed. (The first term is the idea of GPTAQ, arXiv 2504.02692. The second lets
o_proj and down_proj take back the errors of all layers before them.)

Shapes: # O out  I in
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["InverseFactor", "Moments", "aim", "factor_inverse"]

MAX_DAMPING = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Sums over the inputs x of a linear weight; None where the sums with the fp32 model's inputs are not needed."""

    hessian_II: Tensor  # Σ x xᵀ
    cross_II: Tensor | None = None  # Σ x₀ xᵀ
    residual_OI: Tensor | None = None  # Σ r xᵀ; without ``cross_II``, r may hold W (x₀ - x) too


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseFactor:
    """The factors of a Hessian that was divided by ``mean``, to a mean diagonal of 1, plus ``damping`` on it; fp64.

    ``root_II`` is M, and ``upper_II`` is U.
    """

    root_II: Tensor
    upper_II: Tensor
    mean: float
    damping: float


def factor_inverse(hessian_II: Tensor, *, damping: float) -> InverseFactor:
    """Factor a Hessian; if that fails, with ten times the damping, and so on.

    The result says how much damping was needed. A Hessian of zeros (no token was seen) gives the identity. Raises
    ValueError for a Hessian that is not finite.
    """
    mean = float(hessian_II.diagonal().mean()) or 1.0
    while (root_II := _root(hessian_II, mean=mean, damping=damping)) is None:
        if damping >= MAX_DAMPING:
            raise ValueError("a Hessian with values that are not finite")
        damping = max(10 * damping, 1e-4)
    # Transposed because LAPACK stores columns; and in place.
    upper_II = torch.eye(len(hessian_II), dtype=torch.float64).T
    torch.linalg.solve_triangular(root_II, upper_II, upper=True, out=upper_II)
    return InverseFactor(root_II=root_II, upper_II=upper_II, mean=mean, damping=damping)


def aim(weights_OI: Tensor, moments: Moments, factor: InverseFactor, *, step: float = 1.0) -> Tensor:
    """The weights to aim at, [O, I] fp32: ``step`` of the way from W to T."""
    if step == 0 or (moments.cross_II is None and moments.residual_OI is None):
        return weights_OI
    # W and T differ by (W (Σ x₀xᵀ - Σ xxᵀ) + Σ r xᵀ) (Σ xxᵀ + λI)⁻¹: small numbers, so that fp32 loses nothing.
    pull_OI = torch.zeros(weights_OI.shape, dtype=torch.float64)
    if moments.residual_OI is not None:
        pull_OI += moments.residual_OI
    if moments.cross_II is not None:
        pull_OI += weights_OI @ (moments.cross_II - moments.hessian_II)
    change_OI = pull_OI.div_(factor.mean) @ factor.upper_II.T @ factor.upper_II
    return weights_OI + step * change_OI.float()


def _root(hessian_II: Tensor, *, mean: float, damping: float) -> Tensor | None:
    """M of the damped Hessian, or None if it has none. Matrices are large; none is kept longer than needed."""
    reversed_II = (hessian_II.flip(0, 1) / mean).double()
    reversed_II.diagonal().add_(damping)
    lower_II, failed = torch.linalg.cholesky_ex(reversed_II)
    return None if failed else lower_II.flip(0, 1)
