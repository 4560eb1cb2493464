"""Turn tokens into text as they come. A token may end inside a character; half a character is never shown."""

from __future__ import annotations

import codecs
from collections.abc import Callable

__all__ = ["TextStream", "letter_bytes"]


class TextStream:
    """The text of tokens in order. Bytes of an incomplete character wait for the next token."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """The text to show after one more token. Bytes that can never form a character become U+FFFD."""
        return self._decoder.decode(self._piece(token))

    def end(self) -> str:
        """The remaining text when no token follows."""
        return self._decoder.decode(b"", final=True)


def letter_bytes() -> dict[str, int]:
    """The byte that each letter of a byte-level vocabulary stands for.

    Source: GPT-2's encoder. Printable bytes of Latin-1 are their own letters; the others take letters from 256 on, in
    order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
