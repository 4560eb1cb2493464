"""The interface between generation and a runtime: tokens in, logits of the last one out, and the room left."""

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

# Takes tokens and the position of the first one; returns the logits [V] of the last one.
Append = Callable[[Sequence[int], int], NDArray[Any]]


class Stepper(Protocol):
    """One sequence in a runtime, which keeps its caches."""

    @property
    def room(self) -> int:
        """How many more tokens fit."""
        ...

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Add tokens at the end; returns the logits [V] of the last one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """What runs an artifact. ``start`` begins an empty sequence of at most the given number of positions."""

    name: str
    context_length: int
    start: Callable[[int], AbstractContextManager[Stepper]]


class ChunkedStepper:
    """A stepper over a function that takes at most ``chunk`` tokens at once. A target only provides the function.

    Without chunks, a runtime that returns logits of every position would make billions of them for a long prompt.
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
