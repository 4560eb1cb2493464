"""Compare the tokenizer and the chat template beside an artifact with the checkpoint's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.parity.prompts import tokenization_text

__all__ = ["document_differences", "read_json"]


def document_differences(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """List which of the two is missing or differs from the checkpoint's, one sentence each.

    Other tools rewrite ``tokenizer.json``; a file that gives the same tokens for all evaluation texts counts as the
    same.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        yield "tokenizer.json is missing"
    elif read_json(path) != read_json(tokenizer.folder / "tokenizer.json") and not _splits_alike(path, tokenizer):
        yield "tokenizer.json is not the checkpoint's, and tokenizes otherwise"
    if tokenizer.chat_template is None:
        return
    template = folder / "chat_template.jinja"
    if not template.exists():
        yield "chat_template.jinja is missing"
    elif template.read_text(encoding="utf-8", errors="replace") != tokenizer.chat_template:
        yield "chat_template.jinja is not the checkpoint's"


def read_json(path: Path) -> Any:
    """The document, or None if it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _splits_alike(path: Path, tokenizer: Tokenizer) -> bool:
    from tokenizers import Tokenizer as FastTokenizer

    text = tokenization_text(tokenizer)
    try:
        found = FastTokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    except Exception:  # tokenizers raises Exception itself
        return False
    return list(found) == tokenizer.encode(text)
