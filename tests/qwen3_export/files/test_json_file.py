"""JSON from the internet is an object of the right fields, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import limited

from qwen3_export.errors import CheckpointError
from qwen3_export.files import json_file
from qwen3_export.files.json_file import Fields, parse_json, read_json


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"{", "cannot be read"),
        (b"[]", "no JSON object"),
        (b"3", "no JSON object"),
        (b'"text"', "no JSON object"),
        (b"\xff{}", "cannot be read"),
        ('{"a": 1}'.encode("utf-16"), "cannot be read"),
        (b'{"a":' * 3000 + b"1" + b"}" * 3000, "nested too deeply"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": "\\ud800"}', "half of a character"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read"),
    ],
)
def test_what_is_no_object(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(CheckpointError, match=words) as refusal:
        read_json(tmp_path / "x.json")
    assert str(refusal.value).isprintable()


def test_a_missing_and_a_huge_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_json(tmp_path / "x.json")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_json(tmp_path)
    (tmp_path / "x.json").write_text('{"a": 1}')
    monkeypatch.setattr(json_file, "MAX_BYTES", 7)
    with pytest.raises(CheckpointError, match="too many for a JSON file"):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("item", [b"[],", b"{},", b'"ab",'])
def test_small_files_that_would_become_gigabytes(item: bytes) -> None:
    with limited(megabytes=300, seconds=60), pytest.raises(ValueError, match="too many values"):
        parse_json(b"[" + item * 5_000_000 + b"1]")


def test_whole_characters_and_repeated_keys() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00", "a": 2}') == {"a": 2}
    with pytest.raises(ValueError, match='the key "a" twice'):
        parse_json(b'{"b": {"a": 1, "a": 2}}', has_unique_keys=True)


READERS: dict[str, tuple[Callable[[Fields, str], Any], list[Any], list[Any]]] = {
    "integer": (Fields.integer, [0, -3, 1 << 70], [1.0, True, "1", [], {}]),
    "number": (Fields.number, [0, 1.5, -3], [float("nan"), float("inf"), True, "1", []]),
    "boolean": (Fields.boolean, [True, False], [0, 1, "true", []]),
    "text": (Fields.text, ["", "a"], [1, [], {}, True]),
    "object": (Fields.object, [{}, {"a": 1}], [[], "a", 1]),
    "items": (Fields.items, [[], [1, "a"]], [{}, "a", 1]),
    "objects": (Fields.objects, [[], [{}]], [[1], {}, "a"]),
    "integers": (Fields.integers, [[], [1, 2]], [[1.0], ["1"], [True], "1", {}]),
}


@pytest.mark.parametrize("name", READERS)
def test_types_of_fields(name: str) -> None:
    read, sound, wrong = READERS[name]
    for value in sound:
        assert read(Fields({"x": value}, Path("c.json")), "x") == value
    for value in wrong:
        with pytest.raises(CheckpointError, match=r"^c\.json: x is .*, where .* belongs"):
            read(Fields({"x": value}, Path("c.json")), "x")
    for document in ({}, {"x": None}):
        assert not read(Fields(document, Path("c.json")), "x")


def test_one_number_is_a_list_of_one() -> None:
    assert Fields({"x": 3}, Path("c.json")).integers("x") == [3]
    assert Fields({"x": None}, Path("c.json")).has("x")
    assert not Fields({}, Path("c.json")).has("x")
