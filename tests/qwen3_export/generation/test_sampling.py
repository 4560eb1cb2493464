"""Sampling against references that are slow and plain."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3_export.errors import ExportError
from qwen3_export.generation.sampling import GREEDY, THINKING, Sampler, Sampling, candidates

# Few different values, so that equals and near-equals occur.
logit_lists = st.lists(st.integers(-12, 12).map(lambda n: n / 2), min_size=1, max_size=24)


def naive(logits: list[float], sampling: Sampling) -> dict[int, float]:
    """Probabilities by token, filter after filter, over plain lists."""
    scaled = [value / sampling.temperature for value in logits]
    order = sorted(range(len(logits)), key=lambda i: (-scaled[i], i))
    kept = order[: sampling.top_k] if sampling.top_k else order
    total = sum(math.exp(scaled[i]) for i in kept)
    probability = {i: math.exp(scaled[i]) / total for i in kept}
    nucleus, mass = [], 0.0
    for i in kept:
        if nucleus and mass >= sampling.top_p:
            break
        nucleus.append(i)
        mass += probability[i]
    best = max(probability.values())
    nucleus = [i for n, i in enumerate(nucleus) if n == 0 or probability[i] >= sampling.min_p * best]
    left = sum(probability[i] for i in nucleus)
    return {i: probability[i] / left for i in nucleus}


@given(
    logits=logit_lists,
    temperature=st.floats(0.1, 3),
    top_k=st.integers(0, 30),
    # Far from sums that rounding may put on either side.
    top_p=st.floats(0.01, 1).map(lambda p: min(1.0, p + math.pi * 1e-7)),
    min_p=st.floats(0, 1).map(lambda p: p * 0.999),
)
def test_candidates_are_the_naive_ones(
    logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, probabilities = candidates(np.array(logits, np.float32), sampling)
    expected = naive(logits, sampling)
    assert ids.tolist() == list(expected)
    np.testing.assert_allclose(probabilities, list(expected.values()), rtol=1e-9)


@given(logits=logit_lists)
def test_greedy_takes_the_first_of_the_largest(logits: list[float]) -> None:
    array = np.array(logits, np.float32)
    assert Sampler(GREEDY).pick(array) == logits.index(max(logits))
    assert Sampler(Sampling(temperature=1.0, top_k=1), seed=3).pick(array) == logits.index(max(logits))


def test_draws_have_the_probabilities_and_repeat_by_seed() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    first, again, other = (Sampler(Sampling(temperature=1.0, top_p=0.85), seed=seed) for seed in (5, 5, 6))
    drawn = [first.pick(logits) for _ in range(4000)]
    assert drawn == [again.pick(logits) for _ in range(4000)]
    assert drawn[:50] != [other.pick(logits) for _ in range(50)]
    shares = {token: count / 4000 for token, count in Counter(drawn).items()}
    assert shares == pytest.approx({1: 0.4 / 0.9, 3: 0.3 / 0.9, 2: 0.2 / 0.9}, abs=0.03)


def test_extreme_logits_are_no_trouble() -> None:
    logits = np.array([-1e30, 88.0, 1e4, -np.inf], np.float32)
    ids, probabilities = candidates(logits, Sampling(temperature=0.01))
    assert ids[0] == 2
    assert probabilities[0] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -0.1), ("temperature", math.nan), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1), ("min_p", -1.0)],
)
def test_numbers_out_of_range_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ExportError, match=f"{field} .*must be"):
        Sampling(**{"temperature": 1.0, field: value})  # type: ignore[arg-type]


def test_text_says_what_is_done() -> None:
    assert str(THINKING) == "temperature 0.6, top_k 20, top_p 0.95, min_p 0"
    assert str(GREEDY) == "greedy"
