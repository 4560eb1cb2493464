"""How far two sets of logits are apart, gathered over many positions without holding them.

KL divergence is KL(reference || candidate) in nats, a value per position, in float64.  The textbook form,
Σ p (log p - log q), loses everything below about 1e-15·|log p|: a conversion that is right has a divergence
near 1e-12, so that form would report its own rounding.  With d = reference - candidate logits, p the
reference's probabilities and e = d - Σ p d,

    KL = log Σ p exp(-e) = log1p(Σ p (expm1(-e) + e)),    because Σ p e = 0,

where every term is >= 0 and about e²/2: nothing cancels, and a shift of all logits of a position drops out.
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

# float64 work is done on this many logits at a time: 16 MiB an array, a dozen rows of Qwen3's vocabulary.
WORKING_LOGITS = 1 << 21

# Above this, exp(-e) could overflow and the plain form is exact enough.
LARGE_DIFFERENCE = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One of the report's four numbers; None where nothing was run.

    ``bound`` is the largest mean_kld in bounds, or None where the number is only reported.
    ``same_top1`` is the share of positions whose likeliest token agrees; ``perplexity_ratio`` is the
    candidate's next-token perplexity over the reference's.
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
        """The same numbers with their verdict; no bound means that being finite is enough."""
        mean = self.mean_kld
        if mean is None:
            return replace(self, bound=bound, status="not_run")
        within = math.isfinite(mean) and (bound is None or mean <= bound)
        return replace(self, bound=bound, status="pass" if within else "fail")


NOT_RUN = Comparison()


@dataclass(slots=True)
class Divergence:
    """Gathers a comparison chunk by chunk; keeps three numbers a position."""

    places: list[np.ndarray] = field(default_factory=list)  # positions within their texts
    klds: list[np.ndarray] = field(default_factory=list)
    losses: list[np.ndarray] = field(default_factory=list)  # candidate's next-token loss less the reference's
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
        """Add positions from ``first`` of a text on; a next token of -1 means that nothing follows.

        Infinite and NaN logits give ∞.
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
        return sum(len(kld) for kld in self.klds)

    def curve(self) -> tuple[CurvePoint, ...]:
        """What was gathered, by position within the texts; empty if nothing was."""
        return curve(np.concatenate(self.places), np.concatenate(self.klds)) if self.positions else ()

    def summary(self) -> Comparison:
        """What was gathered, not judged yet (status ``not_run``); empty numbers if nothing was."""
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
    """KL(reference || candidate) of each position, float64 nats [P]."""
    reference = reference_PV.to(torch.float64)
    return _kl_from_difference(torch.log_softmax(reference, dim=-1), reference - candidate_PV)[0]


def _kl_from_difference(log_p: torch.Tensor, difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(KL, Σ p d) of each position."""
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
