"""Tokens to text: the bytes of every token, and never half a character."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import DEMO

from qwen3_export.generation.speech import Speech, folder_speech
from qwen3_export.generation.text import TextStream, letter_bytes


@pytest.fixture(scope="module")
def speech() -> Speech:
    return folder_speech(DEMO)


SPEECH = folder_speech(DEMO)


@given(text=st.text())
def test_pieces_put_a_text_together_again(text: str) -> None:
    import unicodedata

    text = unicodedata.normalize("NFC", text)  # the tokenizer does
    stream, parts = TextStream(SPEECH.piece), []
    for token in SPEECH.encode(text):
        if SPEECH.piece(token) or token < 8156:
            parts.append(stream.add(token))
    assert "".join(parts) + stream.end() == text
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in parts) or "\N{REPLACEMENT CHARACTER}" in text


def test_half_a_character_waits() -> None:
    pieces = {1: "ü".encode()[:1], 2: "ü".encode()[1:] + b"a", 3: b"\xff"}
    stream = TextStream(pieces.__getitem__)
    assert [stream.add(token) for token in (1, 2, 1)] == ["", "üa", ""]
    assert stream.end() == "\N{REPLACEMENT CHARACTER}"
    assert TextStream(pieces.__getitem__).add(3) == "\N{REPLACEMENT CHARACTER}"


def test_every_byte_has_a_letter_of_its_own() -> None:
    letters = letter_bytes()
    assert sorted(letters.values()) == list(range(256))
    assert (letters["Ġ"], letters["Ċ"], letters["a"]) == (32, 10, 97)


def test_markup_is_shown_or_not_as_the_tokenizer_says(speech: Speech) -> None:
    assert speech.piece(8158) == b""  # <|im_end|>
    assert speech.piece(8180) == b"<think>"
    assert speech.piece(8190) == b""  # a row of the embedding that no token uses
    assert speech.marks == (8180, 8181)
    assert [token for token in range(8150, 8192) if speech.is_end(token)] == [8156, 8158]


@pytest.mark.gguf
def test_llama_cpp_has_the_same_pieces(tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from qwen3_export.checkpoint.model import load
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.export import prepare
    from qwen3_export.targets.gguf.recipes import find_recipe
    from qwen3_export.targets.registry import open_artifact

    emit(prepare(load("demo"), find_recipe("q4_0"), out=tmp_path / "m.gguf").files)
    with open_artifact(tmp_path / "m.gguf") as opened:
        theirs = opened.speech
        others = [i for i in range(8182) if theirs.piece(i) != SPEECH.piece(i)]
        # llama.cpp hides markup of code models (<|fim_prefix|> to <|file_sep|>) by its name.
        assert set(others) <= set(range(8172, 8178))
        assert theirs.marks == SPEECH.marks
        assert theirs.template.text == SPEECH.template.text
        assert theirs.stated == {name: SPEECH.stated[name] for name in ("temperature", "top_k", "top_p")}
        assert all(theirs.is_end(token) for token in (8156, 8158))
