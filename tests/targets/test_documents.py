"""The tokenizer's files beside an artifact: each consumer finds in them what transformers finds in the checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from models import DEMO, begin_with, flag_tokens, set_in, write_model

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.checkpoint.template import ChatTemplate
from qwen3_export.parity.dialogues import DIALOGUES, same_text
from qwen3_export.parity.documents import SETTINGS, document_differences
from qwen3_export.parity.tokenization import EXECUTORCH, GENAI, TRANSFORMERS_JS, compare_tokenization
from qwen3_export.targets.coreml.documents import coreml_documents, end_remarks, end_token
from qwen3_export.targets.documents import TOKENIZER_DOCUMENTS, generation_document, tokenizer_documents
from qwen3_export.targets.genai_template import for_genai

# What Qwen3's own template asks of an engine: old thoughts are cut out, tools are listed, results are put together.
THINKS = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=0) %}
{%- for message in messages[::-1] %}
    {%- if message.role == 'user' and not message.content.startswith('<tool_response>') and not ns.last %}
        {%- set ns.last = messages|length - loop.index0 %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and loop.index0 < ns.last and '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for call in message.tool_calls or [] %}
            {{- '<tool_call>' + call.function.name }}{{ call.function.arguments | tojson }}{{ '</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
FLAGGED = {"<|left|>": {"lstrip": True}, "wörd": {"single_word": True}, "<plain>": {}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "checkpoint", num_hidden_layers=1)


def settings_of(documents: dict[str, bytes]) -> dict[str, Any]:
    return json.loads(documents[SETTINGS])


def written(folder: Path, documents: dict[str, bytes]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in documents.items():
        (folder / name).write_bytes(content)
    return folder


def jinja_alone(folder: Path, text: str = THINKS) -> Model:
    """A checkpoint as today's transformers saves it."""
    set_in(folder / SETTINGS, chat_template=...)
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    return load(folder)


def test_documents_of_a_sound_checkpoint_are_copied() -> None:
    model = load("demo")
    for is_for_genai in (True, False):
        found = tokenizer_documents(model, is_for_genai=is_for_genai)
        assert set(found) == set(TOKENIZER_DOCUMENTS)
        assert all(found[name] == (DEMO / name).read_bytes() for name in ("tokenizer.json", SETTINGS))
        assert found["chat_template.jinja"].decode() == model.tokenizer.chat_template
    assert generation_document(model) == (DEMO / "generation_config.json").read_bytes()
    own = coreml_documents(model)
    assert all(own[name] == (DEMO / name).read_bytes() for name in ("config.json", SETTINGS, "generation_config.json"))


@pytest.mark.parametrize("is_for_genai", [True, False])
def test_a_template_in_a_file_is_written_where_others_read_it(folder: Path, is_for_genai: bool) -> None:
    model = jinja_alone(folder)
    found = tokenizer_documents(model, is_for_genai=is_for_genai)
    text = settings_of(found)["chat_template"]
    assert text == found["chat_template.jinja"].decode()
    assert (text == THINKS) is not is_for_genai  # reworded for genai's engine
    assert (
        settings_of(found)["added_tokens_decoder"] == json.loads((DEMO / SETTINGS).read_text())["added_tokens_decoder"]
    )


def test_named_templates(folder: Path, tmp_path: Path) -> None:
    named = [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]
    set_in(folder / SETTINGS, chat_template=named)
    model = load(folder)
    found = tokenizer_documents(model)
    assert found[SETTINGS] == (folder / SETTINGS).read_bytes()
    assert found["chat_template.jinja"] == b"a"
    assert settings_of(tokenizer_documents(model, is_for_genai=True))["chat_template"] == "a"
    assert list(document_differences(written(tmp_path / "out", found), model.tokenizer)) == []


def test_names_that_transformers_has_from_elsewhere(folder: Path) -> None:
    set_in(folder / SETTINGS, eos_token=..., unk_token=..., added_tokens_decoder=...)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    settings = settings_of(tokenizer_documents(load(folder)))
    assert (settings["eos_token"], settings["unk_token"]) == ("<|im_end|>", "<|endoftext|>")


def test_tokens_that_only_the_settings_have(folder: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    flag_tokens(folder, FLAGGED)
    listed = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    set_in(folder / "tokenizer.json", added_tokens=listed[:-3])
    model = load(folder)
    path = written(tmp_path / "out", tokenizer_documents(model)) / "tokenizer.json"
    assert json.loads(path.read_text())["added_tokens"] == listed
    text = "a <|left|> wörd <plain>"
    assert Tokenizer.from_file(str(path)).encode(text).ids == model.tokenizer.encode(text)


def test_lint_reads_as_the_consumer_does(folder: Path, tmp_path: Path) -> None:
    model = jinja_alone(folder)
    out = written(tmp_path / "out", tokenizer_documents(model))
    js, genai = (SETTINGS,), (SETTINGS, "chat_template.jinja")
    for first_of in ((), js, genai):
        assert list(document_differences(out, model.tokenizer, first_of=first_of)) == []
    # As the checkpoint has it: transformers.js finds no template.
    shutil.copyfile(folder / SETTINGS, out / SETTINGS)
    assert list(document_differences(out, model.tokenizer, first_of=genai)) == []
    (told,) = document_differences(out, model.tokenizer, first_of=js)
    assert told == "tokenizer_config.json: no chat template, and the consumer looks for it nowhere else"
    assert list(document_differences(out, model.tokenizer)) == ["tokenizer_config.json: has no chat template"]
    # genai takes the other one, although the file of Jinja is right.
    set_in(out / SETTINGS, chat_template="{{ messages[0].content }}")
    (told,) = document_differences(out, model.tokenizer, first_of=genai)
    assert told == "tokenizer_config.json: has another chat template than the checkpoint"
    # Other words for the same are the same.
    set_in(out / SETTINGS, chat_template="{# by hand #}" + THINKS)
    assert list(document_differences(out, model.tokenizer, first_of=js)) == []


def base_tune(folder: Path, **settings: Any) -> Model:
    set_in(folder / "generation_config.json", eos_token_id=8156)
    set_in(folder / "config.json", eos_token_id=8156)
    set_in(folder / SETTINGS, eos_token="<|endoftext|>", **settings)
    return load(folder)


def test_every_end_is_in_the_generation_config(folder: Path) -> None:
    found = json.loads(generation_document(base_tune(folder)))
    assert (found["eos_token_id"], found["top_k"]) == ([8156, 8158], 20)
    (folder / "generation_config.json").unlink()
    assert json.loads(generation_document(load(folder)))["eos_token_id"] == [8156, 8158]


def test_swift_transformers_stops_at_the_end_of_a_turn(folder: Path) -> None:
    """It knows one end, the tokenizer's eos_token."""
    model = base_tune(folder)
    found = coreml_documents(model)
    assert settings_of(found)["eos_token"] == "<|im_end|>"
    assert json.loads(found["config.json"])["eos_token_id"] == 8158
    assert list(end_remarks(model.tokenizer)) == [
        "swift-transformers stops at one token: eos_token of the files beside the package becomes <|im_end|>"
    ]


def test_an_eos_token_that_the_template_needs_is_kept(folder: Path) -> None:
    template = "{{ eos_token }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    model = base_tune(folder, chat_template=template)
    assert end_token(model.tokenizer) is None
    assert settings_of(coreml_documents(model))["eos_token"] == "<|endoftext|>"
    (told,) = end_remarks(model.tokenizer)
    assert "let your app stop at <|im_end|>" in told


@pytest.mark.parametrize(
    ("text", "changed"),
    [
        ("{{ 'x' in messages[0].content }}", True),
        ("{% if '</think>' not in messages[-1].content %}a{% else %}b{% endif %}", True),
        ("{{ 'role' in messages[0] and 'user' in ['user'] }}", True),
        ("{{ 'e' in messages[0].content | lower }}", True),
        ('{{ "a" in messages[0].content.split("l")[0] }}', True),
        ("{{ 'H' in (messages[0].content or '') and 'user' in ('user', 'tool') }}", True),
        ("{{ 'x' in messages[0].content ~ 'x' }}", False),  # closer than `in`
        ("{% for x in 'ab' %}{{ x }}{% endfor %}'a' in text", False),
        ("{{ tools is none }}{% if documents is not none %}d{% endif %}", True),
        ("{{ pad_token }}{{ eos_token }}", True),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", False),
    ],
)
def test_what_genai_does_not_understand_is_said_otherwise(text: str, changed: bool) -> None:
    """In transformers, the text of the prompt is the same."""
    template = ChatTemplate(templates={"default": text}, tokens={"eos_token": "<|im_end|>", "pad_token": "it's"})
    found = for_genai(template)
    assert same_text(template, found)
    assert (found.text != text) is changed


@pytest.mark.onnx
@pytest.mark.parametrize(
    "text",
    [
        THINKS,
        "{% if tools is not none %}{{ tools | length }}{% endif %}{{ pad_token }}{{ eos_token }}",
        "{% for m in messages %}{{ 'thought' if '</think>' in (m.content or '') else m.role }}{% endfor %}",
    ],
)
def test_genai_renders_what_transformers_renders(folder: Path, tmp_path: Path, text: str) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    from qwen3_export.targets.onnx.genai import observe_genai, render
    from qwen3_export.targets.onnx.genai_config import build_genai_config

    flag_tokens(folder, FLAGGED)
    model = jinja_alone(folder, text)
    config = json.dumps(build_genai_config(model, graph_file="model.onnx", context_length=2048)).encode()
    out = written(tmp_path / "out", {**tokenizer_documents(model, is_for_genai=True), "genai_config.json": config})
    theirs = genai.Tokenizer(str(out))
    right = [dialogue for dialogue in DIALOGUES if dialogue.name != "null content"]
    assert [render(theirs, dialogue) for dialogue in right] == [d.rendered(model.tokenizer.template) for d in right]
    found = observe_genai(out, model.tokenizer, is_full=True)
    assert found.problems == ()
    assert [note.partition(" has ")[0] for note in found.notes[:2]] == [
        "the added token '<|left|>'",
        "the added token 'wörd'",
    ]
    assert "does not compose characters" in found.notes[2]
    # With the checkpoint's own words, old thoughts stay.
    if text == THINKS:
        written(out, {**tokenizer_documents(model), "genai_config.json": config})
        told = observe_genai(out, model.tokenizer, is_full=False).notes[-1]
        assert "renders the chat template otherwise than transformers (old thoughts; tool result, then a ques" in told


@pytest.mark.executorch
def test_executorch_keeps_accents(folder: Path, tmp_path: Path) -> None:
    """Its tokenizer loses them where tokenizer.json says NFC."""
    pytest.importorskip("pytorch_tokenizers")
    from qwen3_export.targets.executorch.tokens import observe_tokenizer

    flag_tokens(folder, FLAGGED)
    model = load(folder)
    out = written(tmp_path / "out", tokenizer_documents(model, composes=False))
    assert list(document_differences(out, model.tokenizer)) == []
    found = observe_tokenizer(out, model.tokenizer, is_full=True)
    assert found.problems == ()
    assert len(found.notes) == 3
    shutil.copyfile(folder / "tokenizer.json", out / "tokenizer.json")
    assert (
        "ExecuTorch tokenizes otherwise than the checkpoint"
        in observe_tokenizer(out, model.tokenizer, is_full=False).problems[0]
    )


JS_FOLDER = "QWEN3_EXPORT_TRANSFORMERS_JS"
SCRIPT = """
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
import { readFileSync } from 'node:fs';
const found = createRequire(process.argv[2] + '/package.json').resolve('@huggingface/transformers');
const { env, AutoTokenizer } = await import(pathToFileURL(found));
env.allowRemoteModels = false;
env.localModelPath = process.argv[3];
const tokenizer = await AutoTokenizer.from_pretrained(process.argv[4]);
const asked = JSON.parse(readFileSync(0, 'utf-8'));
const rendered = asked.dialogues.map(({ messages, given }) => {
  try { return tokenizer.apply_chat_template(messages, { tokenize: false, ...given }); } catch { return null; }
});
const tokens = asked.texts.map((text) => tokenizer.encode(text, { add_special_tokens: false }).map(Number));
const plain = tokenizer.encode('sea').map(Number);
console.log(JSON.stringify({ rendered, tokens, plain }));
"""


def test_transformers_js_renders_what_transformers_renders(folder: Path, tmp_path: Path) -> None:
    modules = os.environ.get(JS_FOLDER)
    if shutil.which("node") is None or modules is None:
        pytest.skip(f"needs node, and {JS_FOLDER}: a folder in which @huggingface/transformers is installed")
    begin_with(folder, "<|im_start|>", 8157)
    set_in(folder / SETTINGS, bos_token="<|im_start|>")
    flag_tokens(folder, {"<|left|>": {"lstrip": True}, "<right>": {"rstrip": True}, "<plain>": {}})
    model = jinja_alone(folder)
    written(tmp_path / "out", tokenizer_documents(model))
    texts: list[str] = []
    compare_tokenization(model.tokenizer, TRANSFORMERS_JS, encode=lambda text: texts.append(text) or [], is_full=True)
    given = [
        {
            "add_generation_prompt": dialogue.add_generation_prompt,
            **({} if dialogue.tools is None else {"tools": dialogue.tools}),
            **({} if dialogue.enable_thinking is None else {"enable_thinking": dialogue.enable_thinking}),
        }
        for dialogue in DIALOGUES
    ]
    asked = [{"messages": dialogue.messages, "given": own} for dialogue, own in zip(DIALOGUES, given, strict=True)]
    (tmp_path / "render.mjs").write_text(SCRIPT)
    done = subprocess.run(
        ["node", tmp_path / "render.mjs", modules, tmp_path, "out"],
        input=json.dumps({"dialogues": asked, "texts": texts}),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    template = model.tokenizer.template
    assert template is not None
    for dialogue, text in zip(DIALOGUES, found["rendered"], strict=True):
        if dialogue.name != "null content":  # which this template refuses
            assert text == dialogue.rendered(template), dialogue.name
    tokens = dict(zip(texts, found["tokens"], strict=True))
    seen = compare_tokenization(model.tokenizer, TRANSFORMERS_JS, encode=tokens.__getitem__, is_full=True)
    assert (seen.problems, seen.notes) == ((), ())
    assert found["plain"] == model.tokenizer.encode_plain("sea")


def test_each_limit_is_of_a_flag_that_tokens_have() -> None:
    known = {"lstrip", "rstrip", "single_word", "normalized"}
    assert all(set(limits.flags) <= known for limits in (EXECUTORCH, GENAI, TRANSFORMERS_JS))
