"""The check of metadata finds mistakes of the writer, and of what reads the tokenizer for the writer."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from models import write_model

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.targets.gguf import metadata as writer
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.metadata_check import metadata_differences

VARIANTS = ("tied", "added_tokens", "resized_vocabulary", "moe", "yarn")
THINK, PADDING = 8180, 8185


def differences(written: Model, folder: Path) -> list[str]:
    """What the check says of metadata that were written from ``written``, for the checkpoint in ``folder``."""
    fields = build_metadata(written, Provenance(recipe="q8_0", file_type=7))
    right = load(folder)
    stored = {key: field.value for key, field in fields.items()}
    return [str(difference) for difference in metadata_differences(stored, right.graph, right.tokenizer)]


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_written_is_expected(model_folder: Callable[[str], Path], name: str) -> None:
    assert differences(load(model_folder(name)), model_folder(name)) == []


@pytest.mark.parametrize(
    ("constant", "wrong", "count", "first"),
    [
        ("CONTROL", writer.USER_DEFINED, 14, 8156),  # control tokens would be shown as text
        ("USER_DEFINED", writer.NORMAL, 6, 8170),  # <think> would be split into pieces
        ("USER_DEFINED", writer.CONTROL, 6, 8170),  # <think> would be hidden
        ("UNUSED", writer.NORMAL, 10, 8182),
        ("NORMAL", writer.USER_DEFINED, 8156, 0),
    ],
)
def test_a_writer_with_a_wrong_token_type(
    model_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    constant: str,
    wrong: int,
    count: int,
    first: int,
) -> None:
    monkeypatch.setattr(writer, constant, wrong)
    (found,) = differences(load(model_folder("tied")), model_folder("tied"))
    assert found.startswith(f"tokenizer.ggml.token_type: {count} of 8192 entries differ, first {first}: {wrong},")


def test_a_writer_that_misread_which_tokens_are_special(model_folder: Callable[[str], Path]) -> None:
    """What the check expects does not come from the tokenizer object that was written."""
    model = load(model_folder("tied"))
    misread = [
        replace(added, special=not added.special) if added.id == THINK else added
        for added in model.tokenizer.added_tokens
    ]
    written = replace(model, tokenizer=replace(model.tokenizer, added_tokens=misread))
    (found,) = differences(written, model_folder("tied"))
    assert f"1 of 8192 entries differ, first {THINK}" in found


def test_a_writer_that_leaves_tokens_out(model_folder: Callable[[str], Path]) -> None:
    model = load(model_folder("added_tokens"))
    fewer = replace(model.tokenizer, added_tokens=model.tokenizer.added_tokens[:-1])
    tokens, types = differences(replace(model, tokenizer=fewer), model_folder("added_tokens"))
    assert "'[PAD8184]', the checkpoint has '</note>'" in tokens
    assert types.endswith("first 8184: 5, the checkpoint has 4")


def test_tokens_that_only_the_settings_add(tmp_path: Path) -> None:
    """Some fine-tunes name their tokens in tokenizer_config.json alone."""
    folder = write_model(tmp_path / "model")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for i, (text, is_special) in enumerate((("<|plan|>", True), ("<note>", False)), start=PADDING):
        settings["added_tokens_decoder"][str(i)] = {"content": text, "special": is_special}
    path.write_text(json.dumps(settings), encoding="utf-8")
    model = load(folder)
    assert differences(model, folder) == []
    plain = replace(
        model.tokenizer, added_tokens=[token for token in model.tokenizer.added_tokens if token.id < PADDING]
    )
    tokens, types = differences(replace(model, tokenizer=plain), folder)
    assert f"2 of 8192 entries differ, first {PADDING}: '[PAD{PADDING}]', the checkpoint has '<|plan|>'" in tokens
    assert types.endswith(f"first {PADDING}: 5, the checkpoint has 3")
