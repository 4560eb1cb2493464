"""Write a reply while it comes: the text alone on standard output.

On a terminal a thought is dimmed, its marks are left out, and characters that would act on the terminal (colours,
movements of the cursor, turned writing) are written out. Into a pipe or a file the reply is written exactly as the
model gave it, so that a program finds the thought between ``<think>`` and ``</think>``.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TextIO

from qwen3_export.files.shown import escaped
from qwen3_export.generation.generate import Step
from qwen3_export.generation.text import TextStream
from qwen3_export.generation.thinking import OPEN, Place

__all__ = ["ReplyWriter"]

DIM, PLAIN = "\x1b[2m", "\x1b[22m"


class ReplyWriter:
    """Writes steps to ``out``; ``is_inside`` says that the prompt has opened the thought already."""

    def __init__(self, out: TextIO, piece: Callable[[int], bytes], *, is_inside: bool = False) -> None:
        self._out, self._text = out, TextStream(piece)
        self._is_terminal = out.isatty()
        self._dims = self._is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._is_dim, self._is_at_start, self._last = False, True, ""
        if is_inside and not self._dims:
            self._write(f"{OPEN}\n")

    def add(self, step: Step) -> None:
        text = self._text.add(step.token)
        if not self._dims:
            self._write(text)
        elif step.place is not Place.MARK:
            self._dim(step.place is Place.THOUGHT)
            self._write(text.lstrip() if self._is_at_start else text)

    def end(self) -> None:
        """The end of the reply, however it came: no dimmed terminal and no unfinished line is left behind."""
        self._write(self._text.end())
        self._dim(False)
        if self._last != "\n":
            self._write("\n")

    def _dim(self, on: bool) -> None:
        if on != self._is_dim:
            self._out.write(DIM if on else PLAIN)
            self._is_dim = on

    def _write(self, text: str) -> None:
        if text:
            self._out.write(escaped(text) if self._is_terminal else text)
            self._out.flush()
            self._is_at_start, self._last = False, text[-1]
