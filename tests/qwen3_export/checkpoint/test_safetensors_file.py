"""Headers of safetensors files: what the safetensors library refuses is refused, in one sentence."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qwen3_export.checkpoint import safetensors_file
from qwen3_export.checkpoint.safetensors_file import BITS, read_header
from qwen3_export.errors import CheckpointError
from qwen3_export.files.positional import read_exactly

A: dict[str, Any] = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
B: dict[str, Any] = {**A, "data_offsets": [8, 16]}
TEXT = json.dumps({"a": A})


def write(path: Path, header: object, size: int = 8) -> Path:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(size))
    return path


def accepted_by_library(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return file.keys() is not None
    except SafetensorError:
        return False


SOUND: dict[str, tuple[object, int]] = {
    "one": ({"a": A}, 8),
    "two": ({"b": B, "a": A}, 16),
    "none": ({}, 0),
    "metadata": ({"a": A, "__metadata__": {"format": "pt"}}, 8),
    "metadata null": ({"a": A, "__metadata__": None}, 8),
    "more fields": ({"a": {**A, "x": 1}}, 8),
    "spaces": (b"  " + TEXT.encode() + b" \n ", 8),
    "empty tensor": ({"a": {**A, "shape": [0, 3], "data_offsets": [0, 0]}, "b": A}, 8),
    "scalar": ({"a": {**A, "shape": [], "data_offsets": [0, 4]}}, 4),
    "empty name": ({"": A}, 8),
    "other types": ({"a": {**A, "dtype": "I64", "shape": [1]}}, 8),
    "half bytes": ({"a": {**A, "dtype": "F4", "shape": [16]}}, 8),
}

BROKEN: dict[str, tuple[object, int]] = {
    "a list": ([], 0),
    "a number": (b" 1", 0),
    "no JSON": (b"{a: 1}", 8),
    "latin": (TEXT.replace("a", "ä").encode("latin-1"), 8),
    "utf-16": (TEXT.encode("utf-16"), 8),
    "byte order mark": (b"\xef\xbb\xbf" + TEXT.encode(), 8),
    "nul at the end": (TEXT.encode() + b"\0", 8),
    "half of a character": (TEXT.replace("a", "\\ud800", 1).encode(), 8),
    "nested": (b'{"a":' * 50_000, 8),
    "an entry is a number": ({"a": 3}, 8),
    "an entry is text": ({"a": "F32"}, 8),
    "an entry is null": ({"a": None}, 8),
    "metadata is a list": ({"a": A, "__metadata__": []}, 8),
    "metadata of numbers": ({"a": A, "__metadata__": {"x": 1}}, 8),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 8]}}, 8),
    "shape is null": ({"a": {**A, "shape": None}}, 8),
    "shape is an object": ({"a": {**A, "shape": {"0": 2}}}, 8),
    "negative shape": ({"a": {**A, "shape": [-2]}}, 8),
    "negative twice": ({"a": {**A, "shape": [-1, -2]}}, 8),
    "float shape": ({"a": {**A, "shape": [2.0]}}, 8),
    "bool shape": ({"a": {**A, "shape": [True, 2]}}, 8),
    "text shape": ({"a": {**A, "shape": ["2"]}}, 8),
    "huge shape": ({"a": {**A, "shape": [1 << 70]}}, 8),
    "overflow": ({"a": {**A, "shape": [1 << 33, 1 << 33]}}, 8),
    "overflow to nothing": ({"a": {**A, "shape": [1 << 40, 1 << 40, 0], "data_offsets": [0, 0]}}, 0),
    "unknown dtype": ({"a": {**A, "dtype": "F31"}}, 8),
    "dtype is a number": ({"a": {**A, "dtype": 32}}, 8),
    "dtype is null": ({"a": {**A, "dtype": None}}, 8),
    "one offset": ({"a": {**A, "data_offsets": [0]}}, 8),
    "three offsets": ({"a": {**A, "data_offsets": [0, 8, 8]}}, 8),
    "negative offset": ({"a": {**A, "data_offsets": [-8, 0]}}, 8),
    "offsets reversed": ({"a": {**A, "data_offsets": [8, 0]}}, 8),
    "float offsets": ({"a": {**A, "data_offsets": [0.0, 8.0]}}, 8),
    "text offsets": ({"a": {**A, "data_offsets": "08"}}, 8),
    "huge offsets": ({"a": {**A, "data_offsets": [1 << 80, (1 << 80) + 8]}}, 8),
    "begins late": ({"a": B}, 16),
    "gap": ({"a": A, "b": {**A, "data_offsets": [12, 20]}}, 20),
    "overlap": ({"a": A, "b": {**A, "data_offsets": [4, 12]}}, 12),
    "the same bytes": ({"a": A, "b": A}, 8),
    "too few bytes for the shape": ({"a": {**A, "shape": [3]}}, 8),
    "too many bytes for the shape": ({"a": {**A, "shape": [1]}}, 8),
    "parts of a byte": ({"a": {**A, "dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, 1),
    "cut short": ({"a": A}, 7),
    "goes on": ({"a": A}, 9),
    "a field twice": (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8),
}

# The library takes these, and the format does not.
STRICTER: dict[str, tuple[object, int]] = {
    "an entry is a list": ({"a": ["F32", [2], [0, 8]]}, 8),
    "a name twice": (f'{{"a":{json.dumps(A)},"a":{json.dumps(A)}}}'.encode(), 8),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_headers(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", *SOUND[name])
    assert accepted_by_library(path)
    assert read_header(path).keys() == set(safe_open(path, framework="numpy").keys())


@pytest.mark.parametrize("name", BROKEN)
def test_broken_headers(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", *BROKEN[name])
    assert not accepted_by_library(path)
    with pytest.raises(CheckpointError) as refusal:
        read_header(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize("name", STRICTER)
def test_headers_that_only_the_library_takes(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", *STRICTER[name])
    assert accepted_by_library(path)
    with pytest.raises(CheckpointError):
        read_header(path)


def test_the_types_are_the_librarys(tmp_path: Path) -> None:
    for dtype in BITS:
        entry = {"dtype": dtype, "shape": [8], "data_offsets": [0, BITS[dtype]]}
        path = write(tmp_path / dtype, {"a": entry}, BITS[dtype])
        assert accepted_by_library(path), dtype
        assert read_header(path)["a"].num_bytes == BITS[dtype]
    message = ""
    try:
        safe_open(write(tmp_path / "x", {"a": {**A, "dtype": "F31"}}), framework="numpy")
    except SafetensorError as error:
        message = str(error)
    assert set(message.split("expected one of ")[1].split(" at line")[0].replace("`", "").split(", ")) == set(BITS)


@pytest.mark.parametrize("data", [b"", b"\x02", bytes(8), struct.pack("<Q", 1 << 63), struct.pack("<Q", 100) + b"{}"])
def test_files_of_other_kinds(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(CheckpointError, match="not a safetensors file, or cut short"):
        read_header(tmp_path / "x")


def test_a_header_beyond_the_formats_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert safetensors_file.MAX_HEADER_BYTES == 100_000_000
    with (tmp_path / "x").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    assert not accepted_by_library(tmp_path / "x")
    monkeypatch.setattr(safetensors_file, "parse_json", lambda *_, **__: pytest.fail("the header was read"))
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        read_header(tmp_path / "x")


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(CheckpointError, match="not a regular file"):
            read_header(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_header(tmp_path / "absent")


def test_memory_is_taken_only_for_bytes_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    assert read_exactly(tmp_path / "x", 90, 10, part="x") == bytes(10)
    for offset, count in ((91, 10), (0, 1 << 60), (1 << 70, 1), (-1, 1), (0, -1)):
        with pytest.raises(CheckpointError, match="ends inside x"):
            read_exactly(tmp_path / "x", offset, count, part="x")


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    arrays = {"a": np.ones((3, 4), np.float16), "b": np.zeros((0, 2)), "c": np.array(1.0)}
    save_file(arrays, tmp_path / "x", metadata={"who": "me"})
    found = read_header(tmp_path / "x")
    assert {name: tensor.shape for name, tensor in found.items()} == {"a": (3, 4), "b": (0, 2), "c": ()}
