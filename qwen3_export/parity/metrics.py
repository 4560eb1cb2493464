"""Compare the logits of two models, position by position, without keeping the logits.

The KL divergence of a position is KL(reference || candidate) in nats, computed in float64. The textbook formula,
Σ p (log p - log q), has a rounding error of about 1e-15·|log p|. A correct conversion has a divergence near 1e-12, so
the formula would show its own rounding. With d = reference - candidate logits, p the reference's probabilities and
e = d - Σ p d,

    KL = log Σ p exp(-e) = log1p(Σ p (expm1(-e) + e)),    because Σ p e = 0.

Every term is >= 0 and about e²/2, so nothing cancels. Adding a constant to all logits of a position changes nothing.
"""

# P positions  V vocabulary

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch

from qwen3_export.parity.curves import CurvePoint, curve

__all__ = ["NOT_RUN", "Comparison", "Divergence", "Status", "kl_divergence"]

Status = Literal["pass", "fail", "not_run"]

# So many logits are converted to float64 at a time: 16 MiB, a dozen rows of Qwen3's vocabulary.
WORKING_LOGITS = 1 << 21

# Where |e| is larger, exp(-e) could overflow, and the plain formula is exact enough.
LARGE_DIFFERENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One of the report's four numbers, with what else was measured; fields are None if nothing was run.

    Divergences are in nats. ``max_abs`` is the largest difference of a logit, ``same_top1`` the share of positions at
    which both models find the same token likeliest, ``perplexity_ratio`` the candidate's next-token perplexity divided
    by the reference's. ``bound`` is the largest allowed ``mean_kld``, None if there is no bound.
    """

    mean_kld: float | None = None
    p99_kld: float | None = None
    max_kld: float | None = None
    max_abs: float | None = None
    same_top1: float | None = None
    perplexity_ratio: float | None = None
    bound: float | None = None
    status: Status = "not_run"

    def judged(self, bound: float | None) -> Comparison:
        """The same numbers, with a status. Without a bound, a finite mean passes."""
        mean = self.mean_kld
        if mean is None:
            return replace(self, bound=bound, status="not_run")
        within = math.isfinite(mean) and (bound is None or mean <= bound)
        return replace(self, bound=bound, status="pass" if within else "fail")


NOT_RUN = Comparison()


@dataclass(slots=True)
class Divergence:
    """Collects a comparison chunk by chunk. It keeps three numbers for each position."""

    places: list[np.ndarray] = field(default_factory=list)  # positions within their texts
    klds: list[np.ndarray] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)  # candidate's next-token loss minus the reference's
    max_abs: float = 0.0
    same_top1: int = 0

    def add(
        self,
        reference_PV: torch.Tensor,
        candidate_PV: torch.Tensor,
        next_tokens_P: Sequence[int],
        *,
        first: int = 0,
    ) -> None:
        """Add the logits [P, V] of consecutive positions of a text; ``first`` is the position of the first row.

        ``next_tokens_P`` are the tokens that follow, -1 at the end of the text. Logits that are infinite or NaN give
        a divergence of infinity. Raises ValueError if the shapes do not match.
        """
        if reference_PV.shape != candidate_PV.shape or len(next_tokens_P) != len(reference_PV):
            raise ValueError(f"cannot compare {tuple(reference_PV.shape)} with {tuple(candidate_PV.shape)}")
        self.places.append(np.arange(first, first + len(reference_PV)))
        for rows in _row_blocks(*reference_PV.shape):
            reference = reference_PV[rows].to(torch.float64)
            difference = reference - candidate_PV[rows]
            log_p = torch.log_softmax(reference, dim=-1)
            self._add_block(reference, difference, log_p, next_tokens=torch.tensor(next_tokens_P[rows]))

    def _add_block(
        self,
        reference: torch.Tensor,
        difference: torch.Tensor,
        log_p: torch.Tensor,
        *,
        next_tokens: torch.Tensor,
    ) -> None:
        kld, mean_difference = _kl_from_difference(log_p, difference)
        self.klds.append(torch.nan_to_num(kld, nan=math.inf).numpy())
        largest = float(difference.abs().max())
        self.max_abs = max(self.max_abs, largest) if math.isfinite(largest) else math.inf
        candidate_top = (reference - difference).argmax(-1)
        self.same_top1 += int((candidate_top == reference.argmax(-1)).sum())
        known = torch.nonzero(next_tokens >= 0)[:, 0]
        # log q = log p - e - KL, so the losses at the next token differ by e + KL.
        e = difference[known, next_tokens[known]] - mean_difference[known]
        self.losses.append((e + kld[known]).numpy())

    @property
    def positions(self) -> int:
        """How many positions were added."""
        return sum(len(kld) for kld in self.klds)

    def curve(self) -> tuple[CurvePoint, ...]:
        """The divergence by position within the texts; empty if nothing was added."""
        return curve(np.concatenate(self.places), np.concatenate(self.klds)) if self.positions else ()

    def summary(self) -> Comparison:
        """The numbers over all positions, not judged yet (status ``not_run``); NOT_RUN if nothing was added."""
        if not self.positions:
            return NOT_RUN
        kld, losses = np.concatenate(self.klds), np.concatenate(self.losses)
        mean_loss = float(losses.mean()) if len(losses) else 0.0
        return Comparison(
            mean_kld=float(kld.mean()),
            p99_kld=float(np.quantile(kld, 0.99, method="inverted_cdf")),
            max_kld=float(kld.max()),
            max_abs=self.max_abs,
            same_top1=self.same_top1 / self.positions,
            perplexity_ratio=math.exp(mean_loss) if mean_loss < 700 else math.inf,
        )


def kl_divergence(reference_PV: torch.Tensor, candidate_PV: torch.Tensor) -> torch.Tensor:
    """KL(reference || candidate) of each position in nats, float64 [P]."""
    reference = reference_PV.to(torch.float64)
    return _kl_from_difference(torch.log_softmax(reference, dim=-1), reference - candidate_PV)[0]


def _kl_from_difference(log_p: torch.Tensor, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL and Σ p d of each position, both [P], from log p and d [P, V]."""
    p = log_p.exp()
    mean = (p * difference).sum(-1)
    e = difference - mean[:, None]
    kld = torch.log1p((p * (torch.expm1(-e) + e)).sum(-1))
    large = e.abs().amax(-1) > LARGE_DIFFERENCE
    if large.any():
        kld[large] = torch.logsumexp(log_p[large] - e[large], dim=-1)
    return kld, mean


def _row_blocks(positions: int, vocabulary: int) -> Iterator[slice]:
    step = max(1, WORKING_LOGITS // vocabulary)
    return (slice(start, start + step) for start in range(0, positions, step))
