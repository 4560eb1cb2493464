"""How replies begin: templates of each kind, and what they are sampled with."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import DEMO, begin_with, set_in, write_model

from qwen3_export.checkpoint.model import load
from qwen3_export.checkpoint.template import ChatTemplate
from qwen3_export.errors import CheckpointError, ExportError, UnsupportedModelError
from qwen3_export.generation.dialogue import open_dialogue, open_raw, sampling_for
from qwen3_export.generation.reference import open_checkpoint
from qwen3_export.generation.replying import prepare
from qwen3_export.generation.sampling import GREEDY, NON_THINKING, THINKING, Sampling
from qwen3_export.generation.speech import Speech, artifact_speech, folder_speech

ASKED = [{"role": "user", "content": "Hello"}]
SEA = [{"role": "user", "content": "sea"}]
SPEECH = folder_speech(DEMO)
SWITCH = SPEECH.template.text
NEVER = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
ALWAYS = NEVER + "<think>\n"


def with_template(template: str | None) -> Speech:
    return replace(SPEECH, template=None if template is None else ChatTemplate(templates={"default": template}))


def test_a_template_with_a_switch_thinks_unless_told_not_to() -> None:
    opening = open_dialogue(SPEECH, ASKED)
    assert (opening.thinks, opening.has_switch, opening.is_inside) == (True, True, False)
    assert opening.text == "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
    plain = open_dialogue(SPEECH, ASKED, think=False)
    assert (plain.thinks, plain.is_inside) == (False, False)
    assert plain.text == opening.text + "<think>\n\n</think>\n\n"


def test_a_template_that_always_thinks() -> None:
    opening = open_dialogue(with_template(ALWAYS), ASKED)
    assert (opening.thinks, opening.has_switch, opening.is_inside) == (True, False, True)
    assert open_dialogue(with_template(ALWAYS), ASKED, think=True) == opening
    with pytest.raises(ExportError, match="always thinks"):
        open_dialogue(with_template(ALWAYS), ASKED, think=False)


def test_a_template_that_never_thinks() -> None:
    assert open_dialogue(with_template(NEVER), ASKED).thinks is False
    with pytest.raises(ExportError, match="does not think; leave `think` out"):
        open_dialogue(with_template(NEVER), ASKED, think=True)


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages[0].content + 1 }}", "{{ raise_exception('no') }}"])
def test_templates_that_fail(template: str) -> None:
    with pytest.raises(UnsupportedModelError, match="chat template"):
        open_dialogue(with_template(template), ASKED)


def test_no_template() -> None:
    with pytest.raises(ExportError, match=r"no chat template; .*`model`.*`raw`"):
        open_dialogue(with_template(None), ASKED)


STATED = {"do_sample": True, "temperature": 0.3, "top_k": 5}


@pytest.mark.parametrize(
    ("template", "think", "stated", "expected"),
    [
        (SWITCH, True, STATED, THINKING),
        (SWITCH, False, STATED, NON_THINKING),
        (ALWAYS, None, STATED, Sampling(temperature=0.3, top_k=5, top_p=0.95)),
        (NEVER, None, STATED, Sampling(temperature=0.3, top_k=5, top_p=0.8)),
        (NEVER, None, {}, NON_THINKING),
        (NEVER, None, {"do_sample": False, "temperature": 0.3}, GREEDY),
    ],
)
def test_sampling_of_dialogues(template: str, think: bool | None, stated: dict[str, Any], expected: Sampling) -> None:
    opening = open_dialogue(with_template(template), ASKED, think=think)
    assert sampling_for(opening, stated) == expected
    assert sampling_for(opening, stated, temperature=0.9, top_k=None) == replace(expected, temperature=0.9)


def test_sampling_of_plain_text() -> None:
    opening = open_raw("Once")
    assert (opening.text, opening.thinks) == ("Once", None)
    assert sampling_for(opening, {}) == GREEDY
    assert sampling_for(opening, {"do_sample": False, "temperature": 0.5}) == GREEDY
    assert sampling_for(opening, STATED) == Sampling(temperature=0.3, top_k=5)


def test_artifacts_speak_for_themselves_and_borrow_what_they_lack(tmp_path: Path) -> None:
    model = load("demo")
    with pytest.raises(ExportError, match=r"no tokenizer\.json; use `model` to name the checkpoint"):
        artifact_speech(tmp_path, None)
    assert artifact_speech(tmp_path, model).origin == str(model.folder)
    shutil.copyfile(DEMO / "tokenizer.json", tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="which token ends a turn"):
        artifact_speech(tmp_path, None)
    own = artifact_speech(tmp_path, None, end_ids=[5])
    assert (own.template, own.is_end(5), own.is_end(8158)) == (None, True, False)
    assert artifact_speech(tmp_path, model, end_ids=[5]).template == SPEECH.template
    (tmp_path / "chat_template.jinja").write_text(NEVER)
    assert artifact_speech(tmp_path, model, end_ids=[5]).template.text == NEVER


def test_every_end_that_any_file_names_counts(tmp_path: Path) -> None:
    shutil.copyfile(DEMO / "tokenizer.json", tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|im_end|>"}}))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 11}))
    genai = {"model": {"eos_token_id": [12, 13]}, "search": {"temperature": 0.4, "num_beams": 1}}
    (tmp_path / "genai_config.json").write_text(json.dumps(genai))
    speech = folder_speech(tmp_path)
    assert [token for token in (10, 11, 12, 13, 8156, 8158) if speech.is_end(token)] == [11, 12, 13, 8158]
    assert speech.stated == {"temperature": 0.4}


def test_a_checkpoint_stops_where_its_template_ends_a_turn(tmp_path: Path) -> None:
    """A fine-tune of a Base release names another end."""
    folder = write_model(tmp_path / "m", num_hidden_layers=1, eos_token_id=8156)
    set_in(folder / "generation_config.json", eos_token_id=8156)
    set_in(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    with open_checkpoint(load(folder)) as opened:
        assert [token for token in (8156, 8157, 8158) if opened.speech.is_end(token)] == [8156, 8158]


def test_plain_text_begins_as_the_tokenizer_says(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", num_hidden_layers=1)
    begin_with(folder, "<|im_start|>", 8157)
    with open_checkpoint(load(folder)) as opened:
        assert prepare(opened, "sea", is_raw=True).tokens == [8157, *opened.speech.encode("sea")]
        assert prepare(opened, "sea").tokens == opened.speech.encode(open_dialogue(opened.speech, SEA).text)


def test_damaged_tokenizers_are_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="tokenizers library cannot read it"):
        folder_speech(tmp_path)
