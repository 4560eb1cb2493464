"""The evaluation texts on which a file is compared with its checkpoint; they ship with the package.

They are dialogues with and without thinking, in a dozen languages and scripts, with code, markup, numbers and prose.
The checkpoint's own chat template renders dialogues, because the model was trained on that form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Protocol

from qwen3_export.errors import UnsupportedModelError

__all__ = [
    "EvaluationText",
    "Prompt",
    "TextEncoder",
    "evaluation_texts",
    "tokenization_text",
    "tokenize_prompts",
]


class TextEncoder(Protocol):
    """The methods of a checkpoint's tokenizer that are needed here."""

    def encode(self, text: str) -> list[int]: ...

    def encode_plain(self, text: str) -> list[int]: ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationText:
    """One text: ``messages`` of a dialogue, or plain ``text``. Every export ends with the ``is_quick`` ones."""

    name: str
    language: str
    kind: str
    is_quick: bool
    messages: tuple[Mapping[str, str], ...] = ()
    enable_thinking: bool | None = None
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A text as tokens."""

    name: str
    tokens: tuple[int, ...]

    @property
    def next_tokens(self) -> tuple[int, ...]:
        """The token after each position; -1 at the end of the text."""
        return (*self.tokens[1:], -1)


def evaluation_texts() -> tuple[EvaluationText, ...]:
    source = resources.files("qwen3_export.data").joinpath("prompts", "evaluation.json")
    document = json.loads(source.read_text(encoding="utf-8"))
    return tuple(
        EvaluationText(
            name=entry["name"],
            language=entry["language"],
            kind=entry["kind"],
            is_quick=entry.get("quick", False),
            messages=tuple(entry.get("messages", ())),
            enable_thinking=entry.get("enable_thinking"),
            text=entry.get("text", ""),
        )
        for entry in document["prompts"]
    )


def tokenize_prompts(
    tokenizer: TextEncoder, *, quick: bool, max_tokens: int = 1024, max_quick_tokens: int = 64
) -> tuple[Prompt, ...]:
    """Tokenize the texts, each cut at ``max_tokens``; ``quick`` gives a few of them, cut shorter."""
    limit = min(max_tokens, max_quick_tokens) if quick else max_tokens
    chosen = [text for text in evaluation_texts() if text.is_quick or not quick]
    encoded = [(text.name, _encode(tokenizer, text)) for text in chosen]
    return tuple(Prompt(name=name, tokens=tuple(tokens[:limit])) for name, tokens in encoded if tokens)


def tokenization_text(tokenizer: TextEncoder) -> str:
    """All texts in one string, chat markup included; a runtime must tokenize it as the checkpoint's tokenizer does."""
    return "\n".join(_plain(tokenizer, text) for text in evaluation_texts())


def _encode(tokenizer: TextEncoder, text: EvaluationText) -> list[int]:
    """A dialogue as the template writes it; plain text with what the tokenizer puts around it."""
    return (tokenizer.encode if text.messages else tokenizer.encode_plain)(_plain(tokenizer, text))


def _plain(tokenizer: TextEncoder, text: EvaluationText) -> str:
    if not text.messages:
        return text.text
    try:
        return tokenizer.render(text.messages, enable_thinking=text.enable_thinking, add_generation_prompt=False)
    except UnsupportedModelError:  # a base model without a chat template
        return "\n\n".join(message["content"] for message in text.messages)
