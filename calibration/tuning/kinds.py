"""Which tokens are replies with a thought, replies without one, and other text.

A model that thinks gives two kinds of answers, and what helps one may hurt the other. So they are told apart by the
chat template's own tokens. Where a text begins within a reply, the end of a thought tells; what shows none counts as
text up to the next turn.

Shapes: T tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.tokens import TextEncoder

__all__ = ["DIALOGUES", "KINDS", "Markers", "kinds_of", "read_markers"]

KINDS = ("text", "thinking", "non-thinking")
DIALOGUES = KINDS[1:]

# An empty thought is at most so many tokens: a blank line, or two.
EMPTY_THOUGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Markers:
    """The tokens with which a turn, and an assistant's turn, begins, and those around a thought."""

    turn: Sequence[int]
    reply: Sequence[int]
    thought: Sequence[int]
    thought_end: Sequence[int]


def read_markers(tokenizer: TextEncoder) -> Markers:
    """The markers of Qwen3's chat template, as this tokenizer spells them."""
    return Markers(
        turn=tokenizer.encode("<|im_start|>"),
        reply=tokenizer.encode("<|im_start|>assistant"),
        thought=tokenizer.encode("<think>"),
        thought_end=tokenizer.encode("</think>"),
    )


def kinds_of(tokens_T: NDArray[np.int64], markers: Markers) -> NDArray[np.int8]:
    """The index in ``KINDS`` of each token, [T]."""
    tokens = tokens_T.tolist()
    kinds_T = np.zeros(len(tokens), np.int8)
    turns = [*_places(tokens, markers.turn), len(tokens)]
    thought_ends = _places(tokens[: turns[0]], markers.thought_end)
    if thought_ends and thought_ends[0] > EMPTY_THOUGHT:
        kinds_T[: turns[0]] = KINDS.index("thinking")
    for first, last in pairwise(turns):
        turn = tokens[first:last]
        if turn[: len(markers.reply)] == list(markers.reply):
            thinks = _thinks(turn, markers)
            kinds_T[first:last] = KINDS.index("thinking" if thinks else "non-thinking")
    return kinds_T


def _thinks(turn: Sequence[int], markers: Markers) -> bool:
    begins, ends = _places(turn, markers.thought), _places(turn, markers.thought_end)
    if not begins:
        return False
    length = (ends[0] if ends else len(turn)) - begins[0] - len(markers.thought)
    return length > EMPTY_THOUGHT


def _places(tokens: Sequence[int], marker: Sequence[int]) -> list[int]:
    """Where a marker begins."""
    size, wanted = len(marker), list(marker)
    return [i for i in range(len(tokens) - size + 1) if tokens[i] == wanted[0] and list(tokens[i : i + size]) == wanted]
