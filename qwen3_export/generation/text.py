"""Tokens to text as they come: a token may end within a character, and half a character is never shown."""

from __future__ import annotations

import codecs
from collections.abc import Callable

__all__ = ["TextStream", "letter_bytes"]


class TextStream:
    """The text of tokens in order; bytes that are not a whole character yet wait for the next token."""

    def __init__(self, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        """What can be shown after one more token; bytes that can never be a character become U+FFFD."""
        return self._decoder.decode(self._piece(token))

    def end(self) -> str:
        """What is left when no token follows."""
        return self._decoder.decode(b"", final=True)


def letter_bytes() -> dict[str, int]:
    """The byte for which each letter of a byte-level vocabulary stands.

    Source: GPT-2's encoder. Printable bytes of Latin-1 stand for themselves, the others in order for letters from 256.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
