"""The linear algebra around GPTQ: a damped Hessian's inverse, and the weights to aim at.

With H = Σ x xᵀ over the inputs of a linear weight, W H Wᵀ measures its output, and GPTQ needs the upper factor U of
the inverse, H⁻¹ = UᵀU.  It is had from one Cholesky decomposition: with columns and rows in reverse order,
H = M Mᵀ with M upper triangular, and U = M⁻¹.  What M says is useful too: for any columns b, M_bb M_bbᵀ is what an
error there costs when the columns after them make up for it as well as they can.

*What to aim at.*  A sequential solver sees inputs x that quantized predecessors have changed; the fp32 model had x₀.
Aiming at W itself would reproduce W x.  What is wanted is W x₀, and, where the weight adds to the residual stream,
also what that stream is off by, r: the least-squares solution of  T x ≈ W x₀ + r  over all tokens,

    T = (W (Σ x₀xᵀ + λI) + Σ r xᵀ) (Σ xxᵀ + λI)⁻¹,        λ as for the damping,

which is W where nothing has changed yet.  (The first term is the idea of GPTAQ, arXiv 2504.02692; the second lets
o_proj and down_proj take back what all layers before them have lost.)

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
    """Sums over the tokens that met a linear weight; None where the fp32 model's are not wanted."""

    hessian_II: Tensor  # Σ x xᵀ
    cross_II: Tensor | None = None  # Σ x₀ xᵀ
    residual_OI: Tensor | None = None  # Σ r xᵀ; without ``cross_II``, r may hold W (x₀ - x) too


@dataclass(frozen=True, slots=True, kw_only=True)
class InverseFactor:
    """Of the Hessian H brought to a mean diagonal of one, plus ``damping`` on the diagonal, in fp64.

    ``root_II`` is M and ``upper_II`` is U; ``mean`` is what H was divided by.
    """

    root_II: Tensor
    upper_II: Tensor
    mean: float
    damping: float


def factor_inverse(hessian_II: Tensor, *, damping: float) -> InverseFactor:
    """Factor a Hessian; where that fails, with ten times the damping, and so on.

    The damping that it took is in the result.  A Hessian of nothing but zeros (no token was seen) gives the identity.
    """
    mean = float(hessian_II.diagonal().mean()) or 1.0
    while (root_II := _root(hessian_II, mean=mean, damping=damping)) is None:
        if damping >= MAX_DAMPING:
            raise ValueError("a Hessian with values that are not finite")
        damping = max(10 * damping, 1e-4)
    # Transposed, because LAPACK wants columns; and in place.
    upper_II = torch.eye(len(hessian_II), dtype=torch.float64).T
    torch.linalg.solve_triangular(root_II, upper_II, upper=True, out=upper_II)
    return InverseFactor(root_II=root_II, upper_II=upper_II, mean=mean, damping=damping)


def aim(weights_OI: Tensor, moments: Moments, factor: InverseFactor, *, step: float = 1.0) -> Tensor:
    """The weights to aim at, [O, I] fp32: ``step`` of the way from W to T."""
    if step == 0 or (moments.cross_II is None and moments.residual_OI is None):
        return weights_OI
    # W and T differ by (W (Σ x₀xᵀ - Σ xxᵀ) + Σ r xᵀ) (Σ xxᵀ + λI)⁻¹: small things, so that fp32 loses nothing.
    pull_OI = torch.zeros(weights_OI.shape, dtype=torch.float64)
    if moments.residual_OI is not None:
        pull_OI += moments.residual_OI
    if moments.cross_II is not None:
        pull_OI += weights_OI @ (moments.cross_II - moments.hessian_II)
    change_OI = pull_OI.div_(factor.mean) @ factor.upper_II.T @ factor.upper_II
    return weights_OI + step * change_OI.float()


def _root(hessian_II: Tensor, *, mean: float, damping: float) -> Tensor | None:
    """M of the damped Hessian, or None where it has none.  Matrices are large: none is kept longer than needed."""
    reversed_II = (hessian_II.flip(0, 1) / mean).double()
    reversed_II.diagonal().add_(damping)
    lower_II, failed = torch.linalg.cholesky_ex(reversed_II)
    return None if failed else lower_II.flip(0, 1)
