"""The text that ships: enough of it, of every kind, and nothing that evaluation uses."""

from __future__ import annotations

import json
import re
from importlib import resources
from typing import Any

import pytest
from models import DEMO

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.tokenizer import load_tokenizer
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.parity.prompts import evaluation_texts

WORDS_IN_COMMON = 8  # as many in a row would be the same sentence


@pytest.fixture(scope="module")
def entries() -> list[dict[str, Any]]:
    sample = resources.files("qwen3_export.data").joinpath("calibration", "sample.jsonl").read_text(encoding="utf-8")
    assert len(sample.encode()) < 300_000
    return [json.loads(line) for line in sample.splitlines()]


def plain(entry: dict[str, Any]) -> str:
    return str(entry.get("text") or "\n".join(message["content"] for message in entry["messages"]))


def runs_of_words(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + WORDS_IN_COMMON]) for i in range(len(words) - WORDS_IN_COMMON + 1)}


def test_every_kind_is_there(entries: list[dict[str, Any]]) -> None:
    thinking = [entry for entry in entries if entry.get("enable_thinking")]
    direct = [entry for entry in entries if entry.get("enable_thinking") is False]
    assert len(thinking) > 30
    assert len(direct) > 30
    assert sum("text" in entry for entry in entries) > 30
    assert sum("tools" in entry for entry in entries) >= 5
    assert {entry["language"] for entry in entries} > {
        "ar",
        "de",
        "en",
        "es",
        "fr",
        "hi",
        "it",
        "ja",
        "ko",
        "pt",
        "ru",
        "zh",
    }
    for entry in thinking + direct:
        last = entry["messages"][-1]
        assert last["role"] == "assistant"
        assert ("</think>" in last["content"]) == entry["enable_thinking"]


def test_there_are_enough_tokens(entries: list[dict[str, Any]]) -> None:
    """56,000 with the demo's small vocabulary; the real one of 151,936 makes 35,000 of them."""
    tokenizer = load_tokenizer(DEMO, open_checkpoint(DEMO).config)
    assert sum(len(tokenizer.encode(plain(entry))) for entry in entries) > 45_000


def test_it_shares_no_sentence_with_the_evaluation(entries: list[dict[str, Any]]) -> None:
    evaluation: set[tuple[str, ...]] = set()
    for text in evaluation_texts():
        evaluation |= runs_of_words(text.text or "\n".join(message["content"] for message in text.messages))
    for entry in entries:
        assert not runs_of_words(plain(entry)) & evaluation


def test_every_dialogue_renders(entries: list[dict[str, Any]]) -> None:
    tokenizer = load_tokenizer(DEMO, open_checkpoint(DEMO).config)
    for entry in entries:
        if "messages" in entry:
            try:
                text = tokenizer.render(entry["messages"], add_generation_prompt=False, tools=entry.get("tools"))
            except UnsupportedModelError as error:
                pytest.fail(f"{error}: {plain(entry)[:60]}")
            assert entry["messages"][-1]["content"].split("</think>")[-1].strip() in text
