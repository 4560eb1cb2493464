"""The evaluation texts cover what they promise, and are rendered as the checkpoint would."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3_export.checkpoint.tokenizer import Tokenizer, load_tokenizer
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.graph import Graph
from qwen3_export.parity.prompts import Prompt, evaluation_texts, tokenization_text, tokenize_prompts


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path, demo_graph: Graph) -> Tokenizer:
    return load_tokenizer(demo_folder, demo_graph.config)


def test_the_texts_cover_what_they_promise() -> None:
    texts = evaluation_texts()
    assert len(texts) >= 24
    assert len({text.name for text in texts}) == len(texts)
    assert {"zh", "de", "fr", "es", "ja", "ar", "ru", "hi", "ko"} <= {text.language for text in texts}
    assert {"dialogue", "code", "markup", "numbers", "prose"} == {text.kind for text in texts}
    dialogues = [text for text in texts if text.messages]
    assert {text.enable_thinking for text in dialogues} == {True, False}
    assert any("<think>" in text.messages[-1]["content"] for text in dialogues)
    assert 2 <= sum(text.is_quick for text in texts) <= 4


def test_quick_texts_are_few_and_short(tokenizer: Tokenizer) -> None:
    quick, full = tokenize_prompts(tokenizer, quick=True), tokenize_prompts(tokenizer, quick=False)
    assert 200 <= sum(len(prompt.tokens) for prompt in quick) <= 400
    assert sum(len(prompt.tokens) for prompt in full) > 4000
    assert all(len(prompt.tokens) <= 50 for prompt in tokenize_prompts(tokenizer, quick=False, max_tokens=50))


def test_dialogues_go_through_the_chat_template(tokenizer: Tokenizer) -> None:
    text = tokenization_text(tokenizer)
    assert "<|im_start|>assistant\n<think>\nMorning and afternoon" in text
    end = tokenizer.generation.eos_token_ids[0]
    assert tokenizer.encode(text).count(end) == text.count("<|im_end|>") > 30


def test_a_base_model_without_template_gets_plain_text(tokenizer: Tokenizer) -> None:
    class Plain:
        def encode_plain(self, text: str) -> list[int]:
            return self.encode(text)

        def encode(self, text: str) -> list[int]:
            return tokenizer.encode(text)

        def render(self, *_arguments: object, **_options: object) -> str:
            raise UnsupportedModelError("no template")

    assert "<|im_start|>" not in tokenization_text(Plain())
    assert tokenize_prompts(Plain(), quick=True)


def test_next_tokens_end_with_none() -> None:
    assert Prompt(name="a", tokens=(5, 6, 7)).next_tokens == (6, 7, -1)
