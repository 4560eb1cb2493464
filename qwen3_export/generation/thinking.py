"""Track thinking and its budget: which tokens are inside ``<think>``, and whether the budget is used up.

When the budget is used up, generation feeds an early-stop sentence and ``</think>``, and the answer follows. The
sentence is the makers' own (Qwen3 Technical Report, arXiv 2505.09388, section 4.3, "Thinking Budget"; the blank lines
are from QwenLM/Qwen3, docs/source/getting_started/thinking_budget.md).
"""

from __future__ import annotations

from enum import Enum

__all__ = ["CLOSE", "EARLY_STOP", "OPEN", "Place", "Thinking"]

OPEN, CLOSE = "<think>", "</think>"
EARLY_STOP = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now."
    f"\n{CLOSE}\n\n"
)


class Place(Enum):
    """The part of a reply to which a token belongs."""

    THOUGHT = "thought"
    ANSWER = "answer"
    MARK = "mark"  # <think> and </think> themselves


class Thinking:
    """Follows the thought of a reply, token by token.

    ``marks`` are the ids of ``<think>`` and ``</think>``, or None if the tokenizer has none. ``is_inside`` is True if
    the prompt ends within a thought.
    """

    def __init__(self, marks: tuple[int, int] | None, *, budget: int | None = None, is_inside: bool = False) -> None:
        self._open, self._close = marks or (-1, -1)
        self._budget = budget
        self.is_inside = is_inside
        self.count = 0

    @property
    def is_spent(self) -> bool:
        """True if the thought still goes on and its budget is used up."""
        return self.is_inside and self._budget is not None and self.count >= self._budget

    def see(self, token: int) -> Place:
        """Count a token of the reply, and return the part to which it belongs."""
        if token in (self._open, self._close):
            self.is_inside = token == self._open
            return Place.MARK
        if not self.is_inside:
            return Place.ANSWER
        self.count += 1
        return Place.THOUGHT
