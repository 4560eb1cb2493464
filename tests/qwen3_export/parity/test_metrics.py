"""Divergences against their textbook form in many digits, and the cases where float64 would fail it."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from qwen3_export.parity.metrics import NOT_RUN, Divergence, kl_divergence


def logits(positions: int, vocabulary: int, *, seed: int = 0, scale: float = 4.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(positions, vocabulary, generator=generator)


def textbook(reference: torch.Tensor, candidate: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax(reference.double(), -1)
    log_q = torch.log_softmax(candidate.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("noise", [0.01, 0.3, 3.0, 60.0])
def test_equals_the_textbook_form(noise: float) -> None:
    reference = logits(20, 500)
    candidate = reference + noise * logits(20, 500, seed=1, scale=1.0)
    torch.testing.assert_close(
        kl_divergence(reference, candidate), textbook(reference, candidate), rtol=1e-9, atol=1e-13
    )


def test_a_divergence_of_1e_14_has_correct_digits() -> None:
    """Two tokens, p = 1/2 each, logits apart by 2d: KL = log cosh d, which is d²/2 for small d."""
    d = 2.0**-23
    exact = float(Fraction(d) ** 2 / 2)
    reference = torch.zeros(1, 2)
    candidate = torch.tensor([[d, -d]])
    assert exact < 1e-13
    assert kl_divergence(reference, candidate).item() == pytest.approx(exact, rel=1e-9)


def test_a_shift_of_all_logits_is_no_difference() -> None:
    reference = logits(8, 300).half().float()
    assert kl_divergence(reference, reference + 4.0).abs().max() < 1e-20


def test_is_never_negative() -> None:
    reference = logits(50, 1000)
    assert (kl_divergence(reference, reference + 1e-7 * logits(50, 1000, seed=2)) >= 0).all()


def test_chunks_add_up_to_the_whole() -> None:
    reference = logits(97, 300)
    candidate = reference + 0.2 * logits(97, 300, seed=1)
    following = [i % 300 for i in range(96)] + [-1]
    whole, parts = Divergence(), Divergence()
    whole.add(reference, candidate, following)
    for start in range(0, 97, 10):
        rows = slice(start, start + 10)
        parts.add(reference[rows], candidate[rows], following[rows])
    assert parts.summary() == whole.summary()
    assert parts.positions == 97


def test_summary_against_plain_arithmetic() -> None:
    reference = logits(64, 200)
    candidate = reference + 0.5 * logits(64, 200, seed=3, scale=1.0)
    following = torch.arange(64) % 200
    gathered = Divergence()
    gathered.add(reference, candidate, following.tolist())
    summary = gathered.summary()
    kld = textbook(reference, candidate)
    losses = [torch.nn.functional.cross_entropy(side.double(), following) for side in (reference, candidate)]
    assert summary.mean_kld == pytest.approx(float(kld.mean()))
    assert summary.max_kld == pytest.approx(float(kld.max()))
    assert summary.p99_kld == pytest.approx(float(np.sort(kld)[math.ceil(0.99 * 64) - 1]))
    assert summary.max_abs == pytest.approx(float((reference - candidate).abs().max()))
    assert summary.same_top1 == float((reference.argmax(-1) == candidate.argmax(-1)).float().mean())
    assert summary.perplexity_ratio == pytest.approx(math.exp(losses[1] - losses[0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_fails(bad: float) -> None:
    reference = logits(4, 50)
    candidate = reference.clone()
    candidate[2, 7] = bad
    gathered = Divergence()
    gathered.add(reference, candidate, [-1] * 4)
    judged = gathered.summary().judged(None)
    assert judged.mean_kld == math.inf
    assert judged.max_abs == math.inf
    assert judged.status == "fail"


def test_verdicts() -> None:
    gathered = Divergence()
    gathered.add(logits(4, 50), logits(4, 50), [-1] * 4)
    assert gathered.summary().judged(0.0).status == "pass"
    assert NOT_RUN.judged(1.0).status == "not_run"
    other = Divergence()
    other.add(logits(4, 50), logits(4, 50, seed=9), [-1] * 4)
    assert other.summary().judged(1e-3).status == "fail"
    assert other.summary().judged(None).status == "pass"


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        Divergence().add(logits(4, 50), logits(4, 51), [-1] * 4)
