"""What generation needs of a runtime: tokens in, the logits of the last one out, and how many more fit."""

# V vocabulary

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError

__all__ = ["Append", "ChunkedStepper", "Runtime", "Stepper"]

# The logits [V] of the last of some tokens, of which the first stands at a position.
Append = Callable[[Sequence[int], int], NDArray[Any]]


class Stepper(Protocol):
    """One sequence in a runtime, whose caches stay there."""

    @property
    def room(self) -> int:
        """How many more tokens may be fed."""
        ...

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens at the end; returns the logits [V] of the last of them."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What runs an artifact. ``start`` makes a sequence of so many positions at most, all of them still free."""

    name: str
    context_length: int
    start: Callable[[int], AbstractContextManager[Stepper]]


class ChunkedStepper:
    """A stepper over a function that takes at most ``chunk`` tokens at once: all that a target has to bring.

    A long prompt in one piece would be billions of logits where a runtime gives those of every position.
    """

    def __init__(self, append: Append, *, positions: int, chunk: int) -> None:
        self._append, self._positions, self._chunk, self._past = append, positions, chunk, 0

    @property
    def room(self) -> int:
        return self._positions - self._past

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        if not 0 < len(tokens) <= self.room:
            raise ValueError(f"{len(tokens)} tokens, where 1 to {self.room} can follow")
        for first in range(0, len(tokens), self._chunk):
            part = tokens[first : first + self._chunk]
            logits_V = self._append(part, self._past)
            self._past += len(part)
        if not np.isfinite(logits_V).all():
            raise CheckpointError(
                f"the logits at position {self._past - 1} are not all finite numbers: the artifact overflows, "
                "or is damaged; qwen3-export check says where"
            )
        return np.asarray(logits_V, np.float32)
