"""What a GGUF file says of tokens: types as llama.cpp's converter has them, ends, beginnings, templates, odd flags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import begin_with, flag_tokens, set_in, write_model

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.parity.tokenization import LLAMA_CPP, compare_tokenization, token_remarks
from qwen3_export.targets.gguf import llama
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.ends import end_remarks
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.metadata_check import metadata_differences
from qwen3_export.targets.gguf.recipes import find_recipe

CONTROL, USER_DEFINED = 3, 4
FIM = range(8172, 8178)  # <|fim_prefix|> to <|file_sep|>
FLAGGED = {
    "<|left|>": {"lstrip": True},
    "<right>": {"rstrip": True, "special": True},
    "wörd": {"single_word": True},
    "<noe\u0301>": {"normalized": True},
    "<plain>": {},
}

UNFLAGGED = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "m", num_hidden_layers=1)


def metadata_of(model: Model) -> dict[str, Any]:
    fields = build_metadata(model, Provenance(recipe="q8_0", file_type=7))
    return {key: field.value for key, field in fields.items()}


def differences(model: Model, **changes: Any) -> list[str]:
    """What the check says of the right metadata with changes; ``...`` removes a key."""
    stored = {key: value for key, value in {**metadata_of(model), **changes}.items() if value is not ...}
    return [str(difference) for difference in metadata_differences(stored, model.graph, model.tokenizer)]


@contextmanager
def vocabulary(model: Model, path: Path) -> Iterator[llama.LlamaModel]:
    """The file in llama.cpp, without its weights."""
    pytest.importorskip("llama_cpp")
    emit(prepare(model, find_recipe("q8_0"), out=path).files)
    with llama.open_model(path, vocabulary_only=True) as opened:
        yield opened


def test_markup_is_control_as_in_llama_cpps_converter(folder: Path) -> None:
    model = load(folder)
    types = metadata_of(model)["tokenizer.ggml.token_type"]
    assert [types[i] for i in FIM] == [CONTROL] * 6
    assert [types[i] for i in (8156, 8170, 8180, 8181)] == [CONTROL, USER_DEFINED, USER_DEFINED, USER_DEFINED]
    # Files of earlier releases, and of other tools that go by the checkpoint's flags, do the same in llama.cpp.
    older = [USER_DEFINED if i in FIM else kind for i, kind in enumerate(types)]
    assert differences(model, **{"tokenizer.ggml.token_type": older}) == []


def base_tune(folder: Path, **settings: Any) -> Model:
    """A fine-tune for dialogues of a Base release."""
    set_in(folder / "generation_config.json", eos_token_id=8156)
    set_in(folder / "tokenizer_config.json", eos_token="<|endoftext|>", **settings)
    return load(folder)


@pytest.mark.gguf
def test_the_end_of_a_turn_is_an_end(folder: Path, tmp_path: Path) -> None:
    model = base_tune(folder)
    stored = metadata_of(model)
    assert (stored["tokenizer.ggml.eos_token_id"], stored["tokenizer.ggml.eot_token_id"]) == (8156, 8158)
    assert differences(model) == []
    assert differences(model, **{"tokenizer.ggml.eot_token_id": ...}) == []  # llama.cpp knows it by its name
    assert differences(model, **{"tokenizer.ggml.eot_token_id": 5}) == [
        "tokenizer.ggml.eot_token_id is 5, which is no end of the checkpoint's"
    ]
    assert prepare(model, find_recipe("q8_0")).remarks == model.tokenizer.notes
    with vocabulary(model, tmp_path / "m.gguf") as opened:
        assert [token for token in range(8150, 8192) if opened.is_end(token) and token not in FIM] == [8156, 8158]


@pytest.mark.gguf
def test_ends_that_llama_cpp_does_not_know_by_name(folder: Path, tmp_path: Path) -> None:
    flag_tokens(folder, {"<done>": {"special": True}, "<stop>": {"special": True}, "<halt>": {"special": True}})
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<done>\n{% endfor %}"
    model = base_tune(folder, chat_template=template)
    set_in(folder / "generation_config.json", eos_token_id=[8156, 8158, 8183])
    model = load(folder)
    stored = metadata_of(model)
    ends = [stored[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot", "eom")]
    assert (ends, differences(model), list(end_remarks(model.tokenizer))) == ([8156, 8182, 8183], [], [])
    assert differences(model, **{"tokenizer.ggml.eom_token_id": ...}) == [
        "the end token <stop> of the checkpoint is no end in the file"
    ]
    with vocabulary(model, tmp_path / "m.gguf") as opened:
        assert all(opened.is_end(token) for token in (8156, 8158, 8182, 8183))
        assert not opened.is_end(8184)
    set_in(folder / "generation_config.json", eos_token_id=[8156, 8158, 8183, 8184])
    model = load(folder)
    assert differences(model) == []
    assert list(end_remarks(model.tokenizer)) == [
        "a GGUF file has no room for the end token <halt>: llama.cpp goes on after it"
    ]


@pytest.mark.gguf
@pytest.mark.parametrize("says", [True, False])
def test_what_plain_text_begins_with_is_the_post_processors(folder: Path, tmp_path: Path, says: bool) -> None:
    """``add_bos_token`` decides nothing where there is a tokenizer.json, in transformers too."""
    begin_with(folder, "<|im_start|>", 8157)
    set_in(folder / "tokenizer_config.json", bos_token="<|im_start|>", add_bos_token=says)
    model = load(folder)
    stored = metadata_of(model)
    assert (stored["tokenizer.ggml.bos_token_id"], stored["tokenizer.ggml.add_bos_token"]) == (8157, True)
    assert differences(model) == []
    assert differences(model, **{"tokenizer.ggml.add_bos_token": False}) == [
        "tokenizer.ggml.add_bos_token is False, the checkpoint has True"
    ]
    with vocabulary(model, tmp_path / "m.gguf") as opened:
        assert opened.tokenize("sea", add_special=True) == model.tokenizer.encode_plain("sea")
        assert opened.tokenize("sea") == model.tokenizer.encode("sea") == model.tokenizer.encode_plain("sea")[1:]
        assert opened.named_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
        right = {"encode": opened.tokenize, "encode_plain": lambda text: opened.tokenize(text, add_special=True)}
        assert compare_tokenization(model.tokenizer, LLAMA_CPP, **right).problems == ()
        (problem,) = compare_tokenization(
            model.tokenizer, LLAMA_CPP, encode=opened.tokenize, encode_plain=opened.tokenize
        ).problems
        assert "begins or ends plain text otherwise" in problem


def test_a_setting_alone_adds_no_beginning(folder: Path) -> None:
    set_in(folder / "tokenizer_config.json", bos_token="<|im_start|>", add_bos_token=True)
    assert metadata_of(load(folder))["tokenizer.ggml.add_bos_token"] is False


def test_beginnings_that_a_file_cannot_say(folder: Path) -> None:
    tokenizer = replace(load(folder).tokenizer, front=(8157, 8156), back=(8156,))
    assert list(end_remarks(tokenizer)) == [
        "the tokenizer begins plain text with <|im_start|><|endoftext|>, which a GGUF file cannot say",
        "the tokenizer ends plain text with <|endoftext|>, which a GGUF file cannot say",
    ]


def test_templates_by_name(folder: Path) -> None:
    named = [
        {"name": "default", "template": "a"},
        {"name": "tool_use", "template": "b"},
        {"name": "r a g", "template": "c"},
    ]
    set_in(folder / "tokenizer_config.json", chat_template=named)
    model = load(folder)
    stored = metadata_of(model)
    assert stored["tokenizer.chat_template"] == "a"
    assert stored["tokenizer.chat_templates"] == ["r_a_g", "tool_use"]
    assert (stored["tokenizer.chat_template.tool_use"], stored["tokenizer.chat_template.r_a_g"]) == ("b", "c")
    assert differences(model) == []
    assert differences(model, **{"tokenizer.chat_template.tool_use": "x"}) == [
        "tokenizer.chat_template.tool_use is 'x', the checkpoint has 'b'"
    ]


@pytest.mark.gguf
def test_flags_that_llama_cpp_does_not_know_are_told_by_name(folder: Path, tmp_path: Path) -> None:
    flag_tokens(folder, FLAGGED)
    model = load(folder)
    remarks = list(token_remarks(model.tokenizer, LLAMA_CPP))
    assert remarks == [
        "the added token '<|left|>' has lstrip: llama.cpp keeps the spaces before it",
        "the added token '<right>' has rstrip: llama.cpp keeps the spaces after it",
        "the added token 'wörd' has single_word: llama.cpp finds it inside words too",
        "the added token '<noe\u0301>' has normalized: llama.cpp finds it only as it is spelled",
    ]
    assert prepare(model, find_recipe("q8_0")).remarks == tuple(remarks)
    with vocabulary(model, tmp_path / "m.gguf") as opened:
        found = compare_tokenization(model.tokenizer, LLAMA_CPP, encode=opened.tokenize, is_full=True)
        assert found.problems == ()
        assert len(found.notes) == 5
        assert found.notes[-1].startswith("llama.cpp does not compose characters (NFC)")
        # Without their flags, the same differences are faults.
        plain = [replace(token, **UNFLAGGED) for token in model.tokenizer.added_tokens]
        faults = compare_tokenization(
            replace(model.tokenizer, added_tokens=plain), LLAMA_CPP, encode=opened.tokenize
        ).problems
        assert len(faults) == 4
        assert "llama.cpp tokenizes ' <|left|> ' otherwise than the checkpoint" in faults[0]


def test_tokens_that_only_the_settings_have_are_tokens(folder: Path) -> None:
    """transformers adds them when it loads the tokenizer."""
    transformers = pytest.importorskip("transformers")
    flag_tokens(folder, FLAGGED)
    document = folder / "tokenizer.json"
    import json

    kept = json.loads(document.read_text(encoding="utf-8"))["added_tokens"][:-5]
    set_in(document, added_tokens=kept)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load(folder).tokenizer
    for text in ("a <|left|> b <right> c", "wörd awörd", "<plain>"):
        assert tokenizer.encode(text) == theirs(text, add_special_tokens=False).input_ids
