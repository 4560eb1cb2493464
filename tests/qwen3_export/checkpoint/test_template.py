"""Chat templates render as transformers' apply_chat_template renders them, whatever they ask for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import DEMO

from qwen3_export.checkpoint.template import read_template
from qwen3_export.checkpoint.turns import turn_end
from qwen3_export.errors import CheckpointError, UnsupportedModelError

Folder = Callable[..., Path]

ASKED: list[dict[str, Any]] = [{"role": "user", "content": "Wie geht's?"}]
TOOLS = [{"type": "function", "function": {"name": "f", "description": 'a < b & "é"', "parameters": {}}}]
DIALOGUE: list[dict[str, Any]] = [
    {"role": "system", "content": "Kurz."},
    *ASKED,
    {
        "role": "assistant",
        "content": None,
        "reasoning": "hm",
        "tool_calls": [{"function": {"name": "f", "arguments": {}}}],
    },
    {"role": "tool", "content": "{}"},
    {"role": "assistant", "content": "Gut.", "name": None},
]
SETTINGS = json.loads((DEMO / "tokenizer_config.json").read_text(encoding="utf-8"))
TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a tokenizer's folder; a setting of ``...`` is left out."""

    def write(**settings: Any) -> Path:
        for name in ("config.json", "tokenizer.json"):
            shutil.copyfile(DEMO / name, tmp_path / name)
        kept = {key: value for key, value in {**SETTINGS, **settings}.items() if value is not ...}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
        return tmp_path

    return write


def settings_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))


def rendered(folder: Path, messages: list[dict[str, Any]] = DIALOGUE, **given: Any) -> str:
    """What we make of a dialogue, which is what transformers makes of it."""
    transformers = pytest.importorskip("transformers")
    template = read_template(folder, settings_of(folder))
    assert template is not None
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert template.tokens == theirs.special_tokens_map
    text = template.render(messages, **given)
    assert text == theirs.apply_chat_template(messages, tokenize=False, **given)
    return text


@pytest.mark.parametrize(
    "template",
    [
        TURNS + "{{ eos_token }}\n{% endfor %}",
        "{{ bos_token }}" + TURNS + "{{ eos_token + '\\n' }}{% endfor %}{{ pad_token }}{{ unk_token }}",
        "{% if tools is not none %}{% for t in tools %}{{ t | tojson }}{% endfor %}{% endif %}{{ tools is defined }}",
        "{% if documents %}{{ documents | tojson(indent=2) }}{% endif %}{{ documents is none }}",
        "{{ strftime_now('%Y-%m-%d') }}{{ messages | tojson }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
        "{% for m in messages %}{% if m.role == 'tool' %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
        "{{ messages[0] | tojson(ensure_ascii=True, separators=(',', ':'), sort_keys=True) }}",
        "{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}{{ 'content' in m }}{{ m.name is defined }}"
        "{% endfor %}",
        "{{ additional_special_tokens }}{{ add_generation_prompt }}{{ enable_thinking }}{{ mask_token is defined }}",
        "{{ image_token }}{{ vision }}{{ sep_token }}",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    ],
)
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"tools": TOOLS, "add_generation_prompt": True},
        {"tools": [], "documents": [{"title": "t", "text": "<ü>"}], "enable_thinking": False},
    ],
)
def test_templates_see_what_transformers_gives_them(folder: Folder, template: str, given: dict[str, Any]) -> None:
    names = {
        "image_token": "<|image_pad|>",
        "sep_token": "<think>",
        "extra_special_tokens": {"vision": "<|vision_pad|>"},
    }
    rendered(folder(chat_template=template, bos_token="<|im_start|>", **names), **given)


@pytest.mark.parametrize(
    "kind", ["Qwen2Tokenizer", "Qwen2TokenizerFast", "PreTrainedTokenizerFast", "LlamaTokenizerFast", ...]
)
def test_names_that_the_settings_leave_out(folder: Folder, kind: Any) -> None:
    named = {"eos_token": ..., "pad_token": ..., "unk_token": ..., "bos_token": ...}
    rendered(folder(tokenizer_class=kind, chat_template="{{ eos_token }}|{{ bos_token }}|{{ unk_token }}", **named))


@pytest.mark.parametrize("has_decoder", [True, False])
def test_a_map_of_special_tokens_counts_without_a_decoder(folder: Folder, has_decoder: bool) -> None:
    decoder = SETTINGS["added_tokens_decoder"] if has_decoder else ...
    written = folder(chat_template="{{ bos_token }}|{{ eos_token }}", added_tokens_decoder=decoder)
    more = {"bos_token": {"content": "<|im_start|>", "lstrip": False}, "eos_token": "<|endoftext|>"}
    (written / "special_tokens_map.json").write_text(json.dumps(more))
    assert rendered(written) == ("|<|im_end|>" if has_decoder else "<|im_start|>|<|endoftext|>")


NAMED = [
    {"name": "default", "template": "plain {{ eos_token }}"},
    {"name": "tool_use", "template": "tools {{ tools }}"},
]


@pytest.mark.parametrize(("tools", "start"), [(None, "plain"), ([], "tools"), (TOOLS, "tools")])
def test_named_templates(folder: Folder, tools: list[dict[str, Any]] | None, start: str) -> None:
    assert rendered(folder(chat_template=NAMED), tools=tools).startswith(start)


@pytest.mark.parametrize("has_default", [True, False])
def test_files_of_jinja_come_first(folder: Folder, has_default: bool) -> None:
    written = folder(chat_template=NAMED)
    (written / "additional_chat_templates").mkdir()
    (written / "additional_chat_templates" / "tool_use.jinja").write_text("from a file")
    if has_default:
        (written / "chat_template.jinja").write_text("default from a file")
        assert rendered(written) == "default from a file"
    assert rendered(written, tools=TOOLS) == "from a file"


def test_templates_without_a_default(folder: Folder) -> None:
    written = folder(chat_template=NAMED[1:])
    assert rendered(written, tools=TOOLS).startswith("tools")
    template = read_template(written, settings_of(written))
    assert template is not None
    assert template.text is None
    with pytest.raises(UnsupportedModelError, match="templates called tool_use, and none called default"):
        template.render(ASKED)


@pytest.mark.parametrize("stated", [5, [{"name": "default"}], [{"template": "x"}], ["x"]])
def test_a_template_that_is_none(folder: Folder, stated: Any) -> None:
    written = folder(chat_template=stated)
    if stated == ["x"]:  # nothing that could be a template
        assert read_template(written, settings_of(written)) is None
        return
    with pytest.raises(CheckpointError, match="chat_template is neither text nor a list"):
        read_template(written, settings_of(written))


def test_a_file_that_is_not_text(folder: Folder) -> None:
    written = folder()
    (written / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja: cannot be read as UTF-8"):
        read_template(written, settings_of(written))


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x }}",
        "{{ 'a' + 1 }}",
        "{{ {}.pop('a') }}",
        "{{ eos_token.format_map }}{% x %}",
    ],
)
def test_templates_that_break_say_so(folder: Folder, template: str) -> None:
    written = folder(chat_template=template)
    found = read_template(written, settings_of(written))
    assert found is not None
    with pytest.raises(UnsupportedModelError, match="does not accept these messages"):
        found.render(ASKED)


ADDED = {"<|im_start|>": True, "<|im_end|>": True, "<|endoftext|>": True, "</s>": True, "</answer>": False}


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TURNS + "<|im_end|>\n{% endfor %}", "<|im_end|>"),
        (TURNS + "{{ eos_token }}{% endfor %}", "<|endoftext|>"),
        (TURNS + " \n</answer><|im_end|>\n{% endfor %}", "<|im_end|>"),
        (TURNS + "</answer>\n{% endfor %}", "</answer>"),
        (TURNS + "{% if not loop.last %}<|im_end|>\n{% endif %}{% endfor %}", "<|im_end|>"),
        (TURNS + "\n{% endfor %}", None),  # the next turn's opening is no end
        (TURNS + "### end\n{% endfor %}", None),
        ("{{ messages[0].content }}", None),
        ("{% if messages|length > 2 %}{{ raise_exception('short') }}{% endif %}" + TURNS + "</s>{% endfor %}", "</s>"),
        ("{{ raise_exception('no') }}", None),
    ],
)
def test_the_end_of_a_turn_is_what_the_template_writes(folder: Folder, template: str, end: str | None) -> None:
    written = folder(chat_template=template, eos_token="<|endoftext|>")
    found = read_template(written, settings_of(written))
    assert found is not None
    assert turn_end(found, ADDED) == end
