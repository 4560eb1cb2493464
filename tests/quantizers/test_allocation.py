"""The choice of formats: within its bytes, and close to the best that trying everything finds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.allocation import Choice, allocate, total_bytes, total_loss


def slots(seed: int, count: int = 5) -> dict[str, list[Choice]]:
    """Losses that fall fourfold a bit, of very different size, with noise: one format may be worse than a smaller."""
    generator = np.random.default_rng(seed)
    found = {}
    for i in range(count):
        size, loss = int(generator.integers(1, 20)), float(10 ** generator.uniform(-3, 1))
        found[f"slot{i}"] = [
            Choice(format=f"{bits}", num_bytes=bits * size, loss=loss * 4**-bits * float(generator.uniform(0.4, 2.5)))
            for bits in (2, 3, 4, 5, 6, 8)
        ]
    return found


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_close_to_the_best(seed: int, share: float) -> None:
    given = slots(seed)
    low, high = (sum(pick(c.num_bytes for c in choices) for choices in given.values()) for pick in (min, max))
    budget = int(low + share * (high - low))
    found = allocate(given, budget)
    assert total_bytes(found) <= budget
    every = (dict(zip(given, pick, strict=True)) for pick in itertools.product(*given.values()))
    best = min(total_loss(choice) for choice in every if total_bytes(choice) <= budget)
    assert best <= total_loss(found) <= 1.6 * best
    assert allocate(given, budget) == found


def test_more_bytes_are_never_worse() -> None:
    given = slots(1, count=12)
    low = sum(min(c.num_bytes for c in choices) for choices in given.values())
    losses = [total_loss(allocate(given, low + more)) for more in range(0, 200, 40)]
    assert losses == sorted(losses, reverse=True)


def test_what_loses_nothing_less_is_not_taken() -> None:
    same = {"a": [Choice(format="small", num_bytes=1, loss=0.5), Choice(format="large", num_bytes=9, loss=0.5)]}
    assert allocate(same, 100)["a"].format == "small"


def test_too_few_bytes() -> None:
    given = slots(0)
    low = sum(min(c.num_bytes for c in choices) for choices in given.values())
    assert total_bytes(allocate(given, low)) == low
    with pytest.raises(QuantizationError, match=f"take {low:,} bytes, and {low - 1:,} are allowed"):
        allocate(given, low - 1)
