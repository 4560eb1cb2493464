"""Choose a token from logits: greedy, or drawn with temperature, top-k, top-p and min-p.

As in transformers, the four are applied in this order, each to what the one before has left. Logits are divided by the
temperature. The ``top_k`` largest stay. Of these, the fewest stay that together have ``top_p`` of the probability. Of
these, the ones stay with at least ``min_p`` times the largest probability. Among equal logits, the smaller id comes
first.
"""

# V vocabulary  K tokens that may be drawn

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import ExportError

__all__ = ["GREEDY", "NON_THINKING", "THINKING", "Sampler", "Sampling", "candidates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to draw a token; a temperature of 0 is greedy, a ``top_k`` of 0 and a ``top_p`` of 1 keep all tokens."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        for name, is_sound, wanted in (
            ("temperature", 0 <= self.temperature < np.inf, "not negative"),
            ("top_k", self.top_k >= 0, "not negative"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
        ):
            if not is_sound:
                raise ExportError(f"{name} {getattr(self, name)}: must be {wanted}")

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    def __str__(self) -> str:
        if self.is_greedy:
            return "greedy"
        return f"temperature {self.temperature:g}, top_k {self.top_k}, top_p {self.top_p:g}, min_p {self.min_p:g}"


GREEDY = Sampling(temperature=0.0)
# The makers' recommendation (cards of Qwen/Qwen3-*, "Best Practices"); greedy thinking repeats itself.
THINKING = Sampling(temperature=0.6, top_k=20, top_p=0.95)
NON_THINKING = Sampling(temperature=0.7, top_k=20, top_p=0.8)


class Sampler:
    """Draws token after token. The same seed draws the same tokens from the same logits."""

    def __init__(self, sampling: Sampling, *, seed: int = 0) -> None:
        self._sampling, self._random = sampling, np.random.default_rng(seed)

    def pick(self, logits_V: NDArray[Any]) -> int:
        if self._sampling.is_greedy:
            return int(np.argmax(logits_V))
        ids_K, probabilities_K = candidates(logits_V, self._sampling)
        place = np.searchsorted(np.cumsum(probabilities_K), self._random.random(), side="right")
        return int(ids_K[min(int(place), len(ids_K) - 1)])


def candidates(logits_V: NDArray[Any], sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The tokens that may be drawn, most probable first, and their probabilities, which sum to one; not for greedy."""
    ids_K = _largest(logits_V, sampling.top_k or len(logits_V))
    scaled_K = logits_V[ids_K].astype(np.float64) / sampling.temperature
    weights_K = np.exp(scaled_K - scaled_K[0])
    probabilities_K = weights_K / weights_K.sum()
    before_K = np.cumsum(probabilities_K) - probabilities_K
    is_kept_K = (before_K < sampling.top_p) & (probabilities_K >= sampling.min_p * probabilities_K[0])
    is_kept_K[0] = True
    kept_K = probabilities_K[is_kept_K]
    return ids_K[is_kept_K], kept_K / kept_K.sum()


def _largest(logits_V: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The ids of the ``count`` largest logits, largest first, without sorting the whole vocabulary."""
    found = np.arange(len(logits_V))
    if count < len(logits_V):
        found = np.flatnonzero(logits_V >= np.partition(logits_V, -count)[-count])
    return found[np.argsort(-logits_V[found], kind="stable")][:count]
