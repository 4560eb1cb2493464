"""The tokenizer equals transformers' on text and dialogues, and misfits are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import write_model

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.tokenizer import Tokenizer, load_tokenizer
from qwen3_export.errors import CheckpointError, UnsupportedModelError

MESSAGES = [
    {"role": "system", "content": "Antworte kurz."},
    {"role": "user", "content": "What is 17 + 5?"},
    {"role": "assistant", "content": "<think>\n17 + 5\n</think>\n\n22"},
    {"role": "user", "content": "und 你好, мир?"},
]


def tokenizer_of(folder: Path) -> Tokenizer:
    return load_tokenizer(folder, open_checkpoint(folder).config)


def edit(path: Path, **changes: object) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**document, **changes}), encoding="utf-8")


@pytest.mark.parametrize("enable_thinking", [None, True, False])
def test_rendering_and_encoding_equal_transformers(enable_thinking: bool | None, demo_folder: Path) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(demo_folder)
    ours = tokenizer_of(demo_folder)
    options = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
    text = ours.render(MESSAGES, enable_thinking=enable_thinking)
    assert text == theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True, **options)
    assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
    assert ours.decode(ours.encode(text)) == text


def test_end_of_turn_comes_first(demo_folder: Path) -> None:
    tokenizer = tokenizer_of(demo_folder)
    ends = [tokenizer.decode([token]) for token in tokenizer.generation.eos_token_ids]
    assert ends == ["<|im_end|>", "<|endoftext|>"]


def test_added_tokens_of_a_fine_tune(model_folder) -> None:
    tokenizer = tokenizer_of(model_folder("added_tokens"))
    assert [token.content for token in tokenizer.added_tokens][-3:] == ["<|plan|>", "<note>", "</note>"]
    assert len(tokenizer.encode("<note>")) == 1


def test_a_jinja_file_comes_before_the_config(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ messages[0].content | tojson }} ü")
    assert tokenizer_of(folder).render([{"role": "user", "content": "ä"}]) == '"ä" ü'


def test_a_template_that_refuses_says_why(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "chat_template.jinja").write_text("{{ raise_exception('system comes first') }}")
    with pytest.raises(UnsupportedModelError, match="system comes first"):
        tokenizer_of(folder).render(MESSAGES)


def test_more_tokens_than_rows(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="8181"):
        tokenizer_of(write_model(tmp_path / "m", vocab_size=8000))


def test_an_end_token_beyond_the_vocabulary(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=[8158, 151645])
    with pytest.raises(CheckpointError, match="151645"):
        tokenizer_of(folder)


def test_a_foreign_pre_tokenizer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    edit(folder / "tokenizer.json", pre_tokenizer={"type": "Whitespace"})
    with pytest.raises(UnsupportedModelError, match="pre-tokenizer"):
        tokenizer_of(folder)


def test_a_tokenizer_that_is_no_bpe(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    edit(folder / "tokenizer.json", model={"type": "Unigram", "vocab": []})
    with pytest.raises(UnsupportedModelError, match="not a BPE"):
        tokenizer_of(folder)


def test_a_missing_tokenizer(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: missing"):
        tokenizer_of(folder)


def test_base_models_end_with_their_own_token(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=8156)
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit(folder / "tokenizer_config.json", chat_template=None)
    assert tokenizer_of(folder).generation.eos_token_ids == (8156,)


def test_what_a_template_writes_after_a_turn_is_an_end(tmp_path: Path) -> None:
    """A fine-tune for dialogues keeps the Base release's end, and its template ends turns with another token."""
    folder = write_model(tmp_path / "m")
    edit(folder / "generation_config.json", eos_token_id=8156)
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    tokenizer = tokenizer_of(folder)
    assert (tokenizer.generation.eos_token_ids, tokenizer.generation.turn_end_id) == ((8156, 8158), 8158)
    assert tokenizer.notes == (
        "the chat template ends turns with <|im_end|>, which no file names as an end; it is added to the end tokens",
    )


def test_named_ends_need_no_note(demo_folder: Path) -> None:
    tokenizer = tokenizer_of(demo_folder)
    assert (tokenizer.generation.turn_end_id, tokenizer.notes) == (8158, ())
