"""The tokenizer's files beside an artifact, written for the consumer that reads them.

- transformers.js and older swift-transformers read the chat template in tokenizer_config.json alone.
- onnxruntime-genai reads it there first, as one string (a list of named templates is an error to it), and
  chat_template.jinja only where there is none.
- Newer swift-transformers, and apps with ExecuTorch's runners, read chat_template.jinja.

So both files hold the template that transformers would take, whichever of them the checkpoint has it in. The same goes
for special tokens with a name, which transformers also finds in special_tokens_map.json or takes as its own defaults,
and for added tokens that only tokenizer_config.json has. A file in which nothing has to change is copied as it is.

ExecuTorch's tokenizer (1.5) loses the accents of composed text where tokenizer.json says to compose it: "Café" becomes
"Cafe", and Korean falls apart. Without a normalizer it is right for composed text, which is what people type.
"""

from __future__ import annotations

import json
from typing import Any

from qwen3_export.checkpoint.model import Model
from qwen3_export.checkpoint.template import DEFAULT, TEMPLATE_FILE, ChatTemplate, token_content
from qwen3_export.checkpoint.tokenizer import ADDED_TOKEN_FLAGS
from qwen3_export.files.json_file import read_json
from qwen3_export.targets.genai_template import for_genai

__all__ = ["TOKENIZER_DOCUMENTS", "generation_document", "tokenizer_documents"]

TOKENIZER, SETTINGS, GENERATION = "tokenizer.json", "tokenizer_config.json", "generation_config.json"
TOKENIZER_DOCUMENTS = (TOKENIZER, SETTINGS, TEMPLATE_FILE)


def tokenizer_documents(
    model: Model, *, is_for_genai: bool = False, composes: bool = True, end_token: str | None = None
) -> dict[str, bytes]:
    """The content of each file by its name.

    ``composes`` False leaves out the normalizer, for a consumer that composes text wrongly. ``end_token`` becomes the
    ``eos_token``, for a consumer that stops at that one alone.
    """
    template = model.tokenizer.template
    if template is not None and is_for_genai:
        template = for_genai(template)
    found = {TOKENIZER: _tokenizer(model, composes=composes), SETTINGS: _settings(model, template, end_token)}
    if template is not None and template.text is not None:
        found[TEMPLATE_FILE] = template.text.encode("utf-8")
    return found


def generation_document(model: Model) -> bytes:
    """generation_config.json with every end token, made from the tokenizer's settings where there is none."""
    path, ends = model.folder / GENERATION, list(model.tokenizer.generation.eos_token_ids)
    if not path.exists():
        return _json({"eos_token_id": ends, "pad_token_id": model.tokenizer.generation.pad_token_id})
    document = read_json(path)
    stated = document.get("eos_token_id")
    has_all = set(ends) <= set(stated if isinstance(stated, list) else [stated])
    return path.read_bytes() if has_all else _json({**document, "eos_token_id": ends})


def _tokenizer(model: Model, *, composes: bool) -> bytes:
    """tokenizer.json, with the added tokens that it lacks, and without the normalizer where that does harm."""
    path = model.folder / TOKENIZER
    document = read_json(path)
    listed = document.get("added_tokens") or []
    known = {int(entry["id"]) for entry in listed}
    missing = [token for token in model.tokenizer.added_tokens if token.id not in known]
    own = {} if composes or document.get("normalizer") is None else {"normalizer": None}
    if not missing and not own:
        return path.read_bytes()
    entries = [
        {"id": token.id, "content": token.content, **{name: getattr(token, name) for name in ADDED_TOKEN_FLAGS}}
        for token in missing
    ]
    return _json({**document, **own, "added_tokens": sorted([*listed, *entries], key=lambda entry: int(entry["id"]))})


def _settings(model: Model, template: ChatTemplate | None, end_token: str | None) -> bytes:
    """tokenizer_config.json, with the template and the named tokens that transformers would find."""
    path = model.folder / SETTINGS
    document = read_json(path) if path.exists() else {"tokenizer_class": "Qwen2Tokenizer"}
    wanted: dict[str, Any] = {} if template is None else {"chat_template": _stated(template)}
    names = {} if template is None else {**template.tokens, **({} if end_token is None else {"eos_token": end_token})}
    extra = document.get("extra_special_tokens")
    named = extra if isinstance(extra, dict) else {}
    wanted |= {
        name: content
        for name, content in names.items()
        if name not in named and token_content(document.get(name)) != content
    }
    changed = {key: value for key, value in wanted.items() if document.get(key) != value}
    return path.read_bytes() if path.exists() and not changed else _json({**document, **changed})


def _stated(template: ChatTemplate) -> object:
    """One template as text, several as a list of objects with a name."""
    if set(template.templates) == {DEFAULT}:
        return template.templates[DEFAULT]
    return [{"name": name, "template": text} for name, text in template.templates.items()]


def _json(document: object) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
