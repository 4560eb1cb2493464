"""Values from files as they are shown in messages: short, and without characters that act on a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

__all__ = ["escaped", "shown"]

WIDTH = 60

# Control characters (C0 without tab and newline, DEL, C1), marks that turn the direction of writing, and halves of
# characters, which cannot be printed at all.
ACTIVE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    r"""The text with characters that act on a terminal written out: ``\x1b[31m`` for a colour, ``\u202e`` and so on.

    Newlines and tabs stay. Text without such characters is returned as it is.
    """
    return ACTIVE.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def shown(value: object) -> str:
    """A value of a JSON document for a message: as JSON writes it, on one line and cut short."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, (list, tuple)):
        return "a list"
    text = json.dumps(value[:WIDTH], ensure_ascii=False) if isinstance(value, str) else json.dumps(value, default=str)
    text = escaped(text)
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}…"
