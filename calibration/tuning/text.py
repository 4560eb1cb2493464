"""The text of a tuning run: pieces to tune on, pieces to compare on, and which tokens are replies of what kind.

A text that lacks one of the two kinds of replies is completed by the dialogues that ship with the package.

Shapes: T tokens of one piece
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.tokens import Calibration, TextEncoder, evenly, read_calibration
from qwen3_export.calibration.tuning.kinds import DIALOGUES, KINDS, Markers, kinds_of, read_markers
from qwen3_export.errors import CalibrationError

__all__ = ["LEAST_POSITIONS", "Kinds", "TuningText", "Windows", "tuning_text"]

# So much of a text is used at most, the part that is held back included.
TOKENS = 32768
# The text is cut into pieces of so many tokens, or of its windows' length; one of so many is held back.
PIECE, HELD_BACK = 256, 8
# So many windows of the package's own dialogues are added where the text has none of one kind.
DIALOGUE_WINDOWS = 16
# A kind counts where so many positions of it are held back.
LEAST_POSITIONS = 64

Windows = Sequence[NDArray[np.int64]]
Kinds = Sequence[NDArray[np.int8]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningText:
    """Pieces of T tokens, to tune on and to compare on, and the kind of each token."""

    seen: Windows
    held_back: Windows
    seen_kinds: Kinds
    kinds: Kinds

    @property
    def num_tokens(self) -> int:
        """Tokens that are tuned on."""
        return sum(map(len, self.seen))


def tuning_text(calibration: Calibration, tokenizer: TextEncoder) -> TuningText:
    """Cut a calibration text into pieces, and hold some of them back.

    Raises CalibrationError for a text that is too short for both.
    """
    markers = read_markers(tokenizer)
    length = min(PIECE, max(map(len, calibration.windows)))
    seen, held = _parts(calibration.windows, markers, length)
    if not all(_count(held, kind) >= LEAST_POSITIONS for kind in DIALOGUES):
        dialogues = read_calibration(None, tokenizer, num_samples=DIALOGUE_WINDOWS)
        more, held_more = _parts(dialogues.windows, markers, length)
        seen, held = [*seen, *more], [*held, *held_more]
    return TuningText(
        seen=[piece.tokens_T for piece in seen],
        held_back=[piece.tokens_T for piece in held],
        seen_kinds=[piece.kinds_T for piece in seen],
        kinds=[piece.kinds_T for piece in held],
    )


class _Piece(NamedTuple):
    """Some tokens, and the kind of each."""

    tokens_T: NDArray[np.int64]
    kinds_T: NDArray[np.int8]


def _parts(windows: Windows, markers: Markers, length: int) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces to tune on, and pieces that are held back, evenly spaced."""
    pieces = []
    for window_T in windows:
        kinds_T = kinds_of(window_T, markers)
        for first in range(0, len(window_T) - length + 1, length):
            part = slice(first, first + length)
            pieces.append(_Piece(window_T[part], kinds_T[part]))
    if len(pieces) < 2:
        raise CalibrationError(
            f"{sum(map(len, windows))} tokens in {len(windows)} windows are too few to tune on and to compare on; give "
            "more text, or shorter windows"
        )
    chosen = evenly(pieces, max(2, TOKENS // length))
    every = min(HELD_BACK, len(chosen))
    return [piece for i, piece in enumerate(chosen) if i % every != every - 1], chosen[every - 1 :: every]


def _count(pieces: Sequence[_Piece], kind: str) -> int:
    return sum(int((piece.kinds_T == KINDS.index(kind)).sum()) for piece in pieces)
