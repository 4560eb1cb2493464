"""Which document each held-out window is from: an article, a story, a dialogue.

Windows are token ids without a word on where they were cut. A window's text is looked for in the source's own file,
spaces aside, and its document is the last title at or before the window's middle. Titles are lines of the file:

    WikiText            " = Robert Boulter = "         an article
    Sherlock Holmes     "ADVENTURE II. …", "VII. …"    a story

Sources without a file are dialogues, or texts that stand alone: each window is a document.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation import Windows

from qwen3_export.checkpoint.model import Model

__all__ = ["documents_of", "source_file", "titles_in"]

TITLE = re.compile(r"^ = (?!=).* = \s*$|^(?:ADVENTURE )?[IVX]+\. [A-Z' -]+$", re.MULTILINE)
# Ends of windows may be cut through a character.
CUT = 8


def documents_of(windows: Windows, model: Model, files: Mapping[str, Path]) -> dict[str, list[str]]:
    """A label for each window's document, by source; ``files`` are the texts that windows were cut from."""
    return {
        source: [str(number) for number in range(len(texts))]
        if source not in files
        else _labels(texts, model, files[source].read_text(encoding="utf-8"))
        for source, texts in windows.items()
    }


def source_file(text: str) -> tuple[str, Path]:
    """A source and its file, from ``NAME=FILE``."""
    name, _, file = text.partition("=")
    return name, Path(file)


def titles_in(text: str) -> list[tuple[int, str]]:
    """Where documents begin, counted without spaces, and their titles; what is before the first has no title."""
    found = [(0, "")]
    for match in TITLE.finditer(text):
        found.append((len(_dense(text[: match.start()])), match.group().strip()))
    return found


def _labels(texts: Sequence[Sequence[int]], model: Model, text: str) -> list[str]:
    dense, titles = _dense(text), titles_in(text)
    starts = [start for start, _ in titles]
    labels, at = [], 0
    for ids in texts:
        window = _dense(model.tokenizer.decode(list(ids)))[CUT:-CUT]
        place = dense.find(window, at)
        if place < 0:
            place = dense.find(window)
        if place < 0:
            raise ValueError(f"a window is not in its source's file: {window[:60]!r}")
        at = place
        number = bisect_right(starts, place + len(window) // 2) - 1
        labels.append(f"{number} {titles[number][1]}")
    return labels


def _dense(text: str) -> str:
    return re.sub(r"\s+", "", text)
