"""A checkpoint's chat template: found, and rendered exactly as transformers' ``apply_chat_template`` renders it.

A template is more than its text. transformers gives it the named special tokens (``bos_token``, ``eos_token`` and so
on, as strings), ``tools`` and ``documents`` (None where there are none), the functions ``raise_exception`` and
``strftime_now``, a ``tojson`` that leaves HTML characters alone, loop controls and ``{% generation %}`` blocks; it
drops keys of messages that are null, and knows a thought by three names. A checkpoint may have several templates by
name: ``tool_use`` is taken where tools are given, else ``default``. All of that was read in transformers 5.24
(tokenization_utils_base.py, utils/chat_template_utils.py), and the tests hold it to the installed release.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qwen3_export.errors import CheckpointError, UnsupportedModelError
from qwen3_export.files.json_file import read_json

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = [
    "ADDITIONAL_TEMPLATES",
    "DEFAULT",
    "TEMPLATE_FILE",
    "TOOL_USE",
    "ChatTemplate",
    "named_tokens",
    "read_template",
    "read_text",
    "templates_in",
    "token_content",
]

TEMPLATE_FILE, ADDITIONAL_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
DEFAULT, TOOL_USE = "default", "tool_use"

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What transformers' tokenizer classes take where tokenizer_config.json does not have the key at all.
END_OF_TEXT = "<|endoftext|>"
CLASS_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "Qwen2Tokenizer": dict.fromkeys(("eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    "GPT2Tokenizer": dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT),
}
# The names under which a message may carry its thought; templates read the first.
REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """Templates by name (a single one is ``default``), and the named special tokens that they are given."""

    templates: Mapping[str, str]
    tokens: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def text(self) -> str | None:
        """The template for dialogues without tools, which is the one that most consumers have room for."""
        return self.templates.get(DEFAULT)

    def chosen(self, *, has_tools: bool) -> str:
        """The template that transformers takes. Raises UnsupportedModelError if there is none for this dialogue."""
        if has_tools and TOOL_USE in self.templates:
            return self.templates[TOOL_USE]
        if DEFAULT not in self.templates:
            names = ", ".join(sorted(self.templates))
            raise UnsupportedModelError(f"the checkpoint has chat templates called {names}, and none called {DEFAULT}")
        return self.templates[DEFAULT]

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> str:
        """The dialogue as text; ``variables``, such as ``enable_thinking``, are the template's own.

        Raises UnsupportedModelError where the template does not accept the dialogue.
        """
        given = {
            "messages": [_message(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "documents": None if documents is None else list(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        return _render(self.chosen(has_tools=tools is not None), {**self.tokens, **variables, **given})


def read_template(folder: Path, settings: Mapping[str, Any]) -> ChatTemplate | None:
    """The chat template of a folder; None where it has none.

    ``settings`` is its tokenizer_config.json. Files of Jinja (chat_template.jinja and the folder
    additional_chat_templates, as newer releases save them) come before what stands there.
    """
    templates = _template_files(folder) or templates_in(settings.get("chat_template"), folder)
    return ChatTemplate(templates=templates, tokens=named_tokens(folder, settings)) if templates else None


def named_tokens(folder: Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that have a name, as transformers' ``special_tokens_map`` has them.

    They are the usual seven, every other key of tokenizer_config.json that ends in ``_token``, and
    ``extra_special_tokens`` where those have names. A special_tokens_map.json counts only beside a config without
    ``added_tokens_decoder``.
    """
    older = folder / "special_tokens_map.json"
    stated = dict(settings)
    if "added_tokens_decoder" not in settings and older.exists():
        stated |= read_json(older)
    kind = str(settings.get("tokenizer_class") or "Qwen2Tokenizer").removesuffix("Fast")
    stated = {**CLASS_DEFAULTS.get(kind, {}), **stated}
    extra = stated.get("extra_special_tokens")
    names = {name: stated[name] for name in stated if name in NAMED_TOKENS or name.endswith("_token")}
    if isinstance(extra, Mapping):
        names |= extra
    found = {name: token_content(value) for name, value in names.items()}
    return {name: content for name, content in found.items() if content is not None}


def token_content(token: object) -> str | None:
    """A special token is written as a string, or as an object with its content."""
    if isinstance(token, Mapping):
        content = token.get("content")
        return content if isinstance(content, str) else None
    return token if isinstance(token, str) else None


def _template_files(folder: Path) -> dict[str, str]:
    more = folder / ADDITIONAL_TEMPLATES
    paths = {path.stem: path for path in sorted(more.glob("*.jinja"))} if more.is_dir() else {}
    if (folder / TEMPLATE_FILE).exists():
        paths = {DEFAULT: folder / TEMPLATE_FILE, **paths}
    return {name: read_text(path) for name, path in paths.items()}


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read as UTF-8 text ({error}); save the template again") from error


def templates_in(stated: object, folder: Path) -> dict[str, str]:
    """One template, or a list of named ones."""
    if isinstance(stated, str):
        return {DEFAULT: stated}
    if stated is None:
        return {}
    if isinstance(stated, list):
        stated = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, Mapping)}
    if not isinstance(stated, Mapping) or not all(isinstance(part, str) for pair in stated.items() for part in pair):
        raise CheckpointError(
            f"{folder / 'tokenizer_config.json'}: chat_template is neither text nor a list of objects with name and "
            "template"
        )
    return dict(stated)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without its null keys, its thought under every name that templates know."""
    kept = {key: value for key, value in message.items() if value is not None}
    thought = next((kept[name] for name in REASONING if name in kept), None)
    return kept if thought is None else {"thinking": thought, **kept, "reasoning_content": thought}


def _render(template: str, variables: Mapping[str, Any]) -> str:
    try:
        return _compiled(template).render(**variables)
    except Exception as error:  # a template may fail in all the ways in which a program can
        raise UnsupportedModelError(f"the chat template does not accept these messages ({error})") from error


@lru_cache(maxsize=32)
def _compiled(template: str) -> Template:
    import jinja2
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks what an assistant wrote, for training; it changes nothing in the text."""

        tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.datetime.now().strftime(form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment.from_string(template)
