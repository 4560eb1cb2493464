"""Generate token after token until the turn ends, ``max_new_tokens`` is reached, or the context is full."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from qwen3_export.generation.sampling import Sampler
from qwen3_export.generation.stepper import Stepper
from qwen3_export.generation.thinking import Place, Thinking

__all__ = ["Ending", "Generation", "Step"]


class Ending(Enum):
    """Why generation ended."""

    END_TOKEN = "the model ended its turn"
    LENGTH = "the most new tokens that were allowed"
    CONTEXT = "the end of the context"


@dataclass(frozen=True, slots=True)
class Step:
    """One token of a reply. ``is_forced`` ones close a thought and were not drawn."""

    token: int
    place: Place
    is_forced: bool = False


class Generation:
    """One reply: iterate over its steps, then read how it went.

    ``early_stop`` are the tokens that close a thought. ``num_drawn`` counts the tokens that the model has chosen, the
    end of the turn included; forced tokens do not count against ``max_new_tokens``. ``prompt_seconds`` is the time
    until the first logits, ``seconds`` the time after them.
    """

    def __init__(
        self,
        stepper: Stepper,
        prompt: Sequence[int],
        *,
        sampler: Sampler,
        thinking: Thinking,
        is_end: Callable[[int], bool],
        max_new_tokens: int,
        early_stop: Sequence[int] = (),
    ) -> None:
        self._stepper, self._prompt, self._sampler, self._thinking = stepper, list(prompt), sampler, thinking
        self._is_end, self._most, self._early_stop = is_end, max_new_tokens, list(early_stop)
        self.ending: Ending | None = None
        self.was_cut_short = False
        self.num_drawn = 0
        self.prompt_seconds = self.seconds = 0.0

    def __iter__(self) -> Iterator[Step]:
        started, pending = time.perf_counter(), self._prompt
        while True:
            # Only once: models are not trained on a reply that opens another thought after this.
            stop = self._early_stop if self._thinking.is_spent and not self.was_cut_short else []
            pending = [*pending, *stop]
            if len(pending) > self._stepper.room:
                self.ending = Ending.CONTEXT
                return
            yield from self._close_thought(stop)
            logits_V = self._stepper.feed(pending)
            if self.num_drawn == 0:
                self.prompt_seconds, started = time.perf_counter() - started, time.perf_counter()
            token = self._sampler.pick(logits_V)
            self.num_drawn += 1
            self.seconds = time.perf_counter() - started
            if self._is_end(token):
                self.ending = Ending.END_TOKEN
                return
            yield Step(token, self._thinking.see(token))
            if self.num_drawn == self._most:
                self.ending = Ending.LENGTH
                return
            pending = [token]

    def _close_thought(self, tokens: Sequence[int]) -> Iterator[Step]:
        for token in tokens:
            self.was_cut_short = True
            yield Step(token, self._thinking.see(token), is_forced=True)
