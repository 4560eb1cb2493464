"""A chat template that onnxruntime-genai's engine renders as transformers renders the checkpoint's.

The engine is a small Jinja in C++ (minja, in onnxruntime-extensions). Seen with onnxruntime-genai 0.18:

- ``'</think>' in content`` is false for a string, whatever it holds, so that old thoughts stay in the history;
- ``tools`` and ``documents`` that are not given are undefined, where transformers gives None;
- of the special tokens with a name, only ``bos_token`` and ``eos_token`` are given;
- a list of named templates in tokenizer_config.json is an error.

The first is put as a question that both engines answer alike, the next two are set before the template begins, and of
several templates the default one is kept. What the template says in transformers stays the same, and a template without
any of these is left as it is. Thinking is switched by
``tokenizer.update_options(chat_template_kwargs='{"enable_thinking": false}')``.
"""

from __future__ import annotations

import re

from qwen3_export.checkpoint.template import DEFAULT, ChatTemplate

__all__ = ["for_genai"]

GIVEN = ("bos_token", "eos_token")
TEXT = r"'[^'\\\n]+'|\"[^\"\\\n]+\""
# A name or parentheses, with what follows closely: attributes, subscripts, calls and filters.
SUBJECT = r"(?:[A-Za-z_]\w*|\([^()]*\))(?:\.\w+|\[[^\[\]]*\]|\([^()]*\)|\s*\|\s*\w+(?:\([^()]*\))?)*"
CONTAINS = re.compile(rf"(?<![\w.~+\-*/%|'\"])(?P<text>{TEXT})\s+(?P<is_not>not\s+)?in\s+(?P<subject>{SUBJECT})")
# What binds closer than ``in`` would belong to the subject, too.
BINDS_CLOSER = re.compile(r"\s*[~+\-*/%](?!\}|%\})|\s*\*\*|\s*\[|\s*\(")
TAG = re.compile(r"\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
ASKS_FOR_NONE = re.compile(r"\b(tools|documents)\s*(?:is\s+(?:not\s+)?|==\s*|!=\s*)[Nn]one\b")


def for_genai(template: ChatTemplate) -> ChatTemplate:
    """The default template alone, in words that the engine understands; none is left where there is no default."""
    if template.text is None:
        return ChatTemplate(templates={}, tokens=template.tokens)
    text = TAG.sub(lambda tag: CONTAINS.sub(_contains, tag.group()), template.text)
    return ChatTemplate(templates={DEFAULT: _preamble(template) + text}, tokens=template.tokens)


def _contains(found: re.Match[str]) -> str:
    """``'x' in y`` with a second way of asking, for strings."""
    text, subject = found["text"], found["subject"]
    if BINDS_CLOSER.match(found.string, found.end()):
        return found.group()
    asked = f"({text} in {subject} or (({subject}) is string and ({subject}).split({text}) | length > 1))"
    return f"(not {asked})" if found["is_not"] else asked


def _preamble(template: ChatTemplate) -> str:
    """What the engine does not give and the template asks for."""
    assert template.text is not None
    tags = "".join(TAG.findall(template.text))
    absent = sorted({found[1] for found in ASKS_FOR_NONE.finditer(tags)})
    lines = [f"{{%- if {name} is not defined %}}{{%- set {name} = none %}}{{%- endif %}}" for name in absent]
    lines += [
        f"{{%- set {name} = {content!r} %}}"
        for name, content in template.tokens.items()
        if name not in GIVEN and re.search(rf"\b{re.escape(name)}\b", tags)
    ]
    # A template that begins with text keeps its first characters: nothing here trims what follows.
    return "".join(lines)
