"""Compare the tokenizer and the chat template beside an artifact with the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen3_export.checkpoint.template import DEFAULT, TEMPLATE_FILE, ChatTemplate, named_tokens, read_text, templates_in
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import CheckpointError
from qwen3_export.files import json_file
from qwen3_export.parity.dialogues import same_text
from qwen3_export.parity.prompts import tokenization_text

__all__ = ["SETTINGS", "document_differences", "read_json"]

SETTINGS = "tokenizer_config.json"
BOTH = (SETTINGS, TEMPLATE_FILE)


def document_differences(folder: Path, tokenizer: Tokenizer, *, first_of: Sequence[str] = ()) -> Iterator[str]:
    """List which of the two is missing or differs from the checkpoint's, one sentence each.

    ``first_of`` names the files in which the consumer looks for a template, one after the other. Without it both files
    count, as releases of one consumer differ. Other tools rewrite these files: a tokenizer that gives the same
    tokens for all evaluation texts, and a template that gives the same text for all dialogues, count as the same.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        yield "tokenizer.json is missing"
    elif read_json(path) != read_json(tokenizer.folder / "tokenizer.json") and not _splits_alike(path, tokenizer):
        yield "tokenizer.json is not the checkpoint's, and tokenizes otherwise"
    right = tokenizer.template
    if right is None:
        return
    try:
        found = {name: _template_in(folder, name) for name in first_of or BOTH}
    except CheckpointError as error:
        yield str(error)
        return
    if first_of:
        first = next((name for name in first_of if found[name] is not None), None)
        if first is None:
            yield f"{' and '.join(first_of)}: no chat template, and the consumer looks for it nowhere else"
            return
        found = {first: found[first]}
    for name, template in found.items():
        if name == SETTINGS and template is None:
            yield f"{name}: has no chat template" if (folder / name).exists() else f"{name} is missing"
        elif name == SETTINGS and template is not None and not _says_the_same(template, right):
            yield f"{name}: has another chat template than the checkpoint"
        elif name == TEMPLATE_FILE and right.text is not None:
            if template is None:
                yield f"{name} is missing"
            elif not _says_the_same(template, replace(right, templates={DEFAULT: right.text})):
                yield f"{name} is not the checkpoint's"


def _says_the_same(template: ChatTemplate, right: ChatTemplate) -> bool:
    """Whether two templates are one; a consumer with room for one has the default."""
    if set(template.templates) == {DEFAULT} and right.text is not None:
        right = replace(right, templates={DEFAULT: right.text})
    return template == right or same_text(template, right)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object that a file holds, or None if it cannot be read, or holds something else."""
    try:
        return json_file.read_json(path)
    except CheckpointError:
        return None


def _template_in(folder: Path, name: str) -> ChatTemplate | None:
    """The template in one file of a folder, with the special tokens that are named there."""
    settings = read_json(folder / SETTINGS) or {}
    if name == SETTINGS:
        stated = templates_in(settings.get("chat_template"), folder)
    else:
        stated = {DEFAULT: read_text(folder / name)} if (folder / name).exists() else {}
    return ChatTemplate(templates=stated, tokens=named_tokens(folder, settings)) if stated else None


def _splits_alike(path: Path, tokenizer: Tokenizer) -> bool:
    from tokenizers import Tokenizer as FastTokenizer

    text = tokenization_text(tokenizer)
    try:
        found = FastTokenizer.from_file(str(path)).encode(text, add_special_tokens=False).ids
    except Exception:  # tokenizers raises Exception itself
        return False
    return list(found) == tokenizer.encode(text)
