"""The files beside a Core ML package, for swift-transformers, which stops at one token alone.

That token is the tokenizer's ``eos_token`` (tokenizer_config.json), and ``eos_token_id`` of config.json is what an app
is told. Where the checkpoint has another token there than the one with which its template ends a turn, both are changed
to the latter, unless the template writes ``eos_token`` for something else.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

from qwen3_export.checkpoint.model import Model
from qwen3_export.checkpoint.template import ChatTemplate
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.files.json_file import read_json
from qwen3_export.parity.dialogues import same_text
from qwen3_export.targets.documents import TOKENIZER_DOCUMENTS, generation_document, tokenizer_documents

__all__ = ["COREML_DOCUMENTS", "coreml_documents", "end_remarks", "end_token"]

CONFIG, GENERATION = "config.json", "generation_config.json"
COREML_DOCUMENTS = (*TOKENIZER_DOCUMENTS, CONFIG, GENERATION)


def coreml_documents(model: Model) -> dict[str, bytes]:
    """The content of each file by its name."""
    path, end = model.folder / CONFIG, end_token(model.tokenizer)
    found = tokenizer_documents(model, end_token=end)
    document = read_json(path)
    token = model.tokenizer.generation.turn_end_id
    is_right = end is None or document.get("eos_token_id") == token
    text = json.dumps({**document, "eos_token_id": token}, indent=2, ensure_ascii=False) + "\n"
    found[CONFIG] = path.read_bytes() if is_right else text.encode("utf-8")
    if (model.folder / GENERATION).exists():
        found[GENERATION] = generation_document(model)
    return found


def end_token(tokenizer: Tokenizer) -> str | None:
    """The end of a turn, where it has to take the place of another ``eos_token``; None where nothing has to change."""
    template, token = tokenizer.template, tokenizer.generation.turn_end_id
    if template is None or token is None or token == tokenizer.generation.eos_token_ids[0]:
        return None
    content = next(added.content for added in tokenizer.added_tokens if added.id == token)
    return content if same_text(template, _with_eos(template, content)) else None


def end_remarks(tokenizer: Tokenizer) -> Iterator[str]:
    """What an app with swift-transformers has to know of the end of a turn."""
    template, token = tokenizer.template, tokenizer.generation.turn_end_id
    if template is None or token is None or token == tokenizer.generation.eos_token_ids[0]:
        return
    content = tokenizer.decode([token])
    if end_token(tokenizer) is not None:
        yield f"swift-transformers stops at one token: eos_token of the files beside the package becomes {content}"
    else:
        yield (
            "swift-transformers stops at one token, eos_token, and the template needs that for something else than the "
            f"end of a turn: let your app stop at {content}"
        )


def _with_eos(template: ChatTemplate, content: str) -> ChatTemplate:
    return replace(template, tokens={**template.tokens, "eos_token": content})
