"""Nothing from a file acts on a terminal."""

from __future__ import annotations

import pytest

from qwen3_export.files.shown import escaped, shown


def test_harmless_text_stays() -> None:
    text = "Grüße, 世界 👩‍👩‍👧 ﷽\n\tתודה"
    assert escaped(text) is text or escaped(text) == text


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\x1b[2J", r"\x1b[2J"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\rb", r"a\rb"),
        ("a\x08b", r"a\x08b"),
        ("\x7f", r"\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202eexe.txt", r"\u202eexe.txt"),
        ("\u2066\u2069\u200f\u061c", r"\u2066\u2069\u200f\u061c"),
        ("\ud83d", r"\ud83d"),
    ],
)
def test_what_acts_is_written_out(text: str, written: str) -> None:
    assert escaped(text) == written
    assert escaped(written) == written


def test_all_control_characters() -> None:
    every = "".join(map(chr, range(0x100)))
    left = [c for c in escaped(every) if ord(c) < 32 or 0x7F <= ord(c) < 0xA0]
    assert left == ["\t", "\n"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb", '"a\\nb"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("\u202e", '"\\u202e"'),
        ("x" * 100, '"' + "x" * 59 + "…"),
        (True, "true"),
        (None, "null"),
        (-3, "-3"),
        ({"a": 1}, "an object"),
        ([1], "a list"),
        (float("nan"), "NaN"),
    ],
)
def test_values_in_messages(value: object, text: str) -> None:
    assert shown(value) == text
