"""Damaged GGUF files: each opens, or is refused in one sentence, in little memory and time."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from fuzzing import NUMBERS, damaged_bytes, limited

from qwen3_export.errors import CheckpointError, ExportError
from qwen3_export.targets.gguf.bounds import check_bounds
from qwen3_export.targets.gguf.container import MetaType, MetaValue, aligned, lay_out, serialize_header
from qwen3_export.targets.gguf.imatrix import ImatrixEntry, read_imatrix, write_imatrix
from qwen3_export.targets.gguf.read import open_gguf, recorded_calibration

METADATA = {
    "general.architecture": MetaValue(MetaType.STRING, "qwen3"),
    "general.alignment": MetaValue(MetaType.UINT32, 32),
    "qwen3.block_count": MetaValue(MetaType.UINT32, 1),
    "qwen3.rope.freq_base": MetaValue(MetaType.FLOAT32, 1e6),
    "tokenizer.ggml.add_bos_token": MetaValue(MetaType.BOOL, False),
    "tokenizer.ggml.tokens": MetaValue(MetaType.STRING, ["a", "b", "ab"], is_array=True),
    "tokenizer.ggml.token_type": MetaValue(MetaType.INT32, [1, 1, 3], is_array=True),
    "tokenizer.chat_template": MetaValue(MetaType.STRING, "{{ messages }}"),
    "qwen3_export.calibration.tensor_errors": MetaValue(MetaType.FLOAT32, [0.1, -1.0], is_array=True),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole GGUF file with two tensors."""
    arrays = {"token_embd.weight": np.ones((4, 32), np.float32), "output_norm.weight": np.ones(32, np.float32)}
    infos = lay_out((name, array.shape, 0, array.nbytes) for name, array in arrays.items())
    data = serialize_header(METADATA, infos)
    for array in arrays.values():
        data += array.tobytes().ljust(aligned(array.nbytes), b"\0")
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    path.write_bytes(data)
    assert set(open_gguf(path).tensors) == set(arrays)
    assert recorded_calibration(open_gguf(path)) is not None
    return data


def look_at(path: Path) -> None:
    file = open_gguf(path)
    assert file.bits_per_weight >= 0
    recorded_calibration(file)


def test_damaged_models(small: bytes, tmp_path: Path) -> None:
    chance, refused, path = random.Random(0), [], tmp_path / "x.gguf"
    with limited():
        for number in range(400):
            path.write_bytes(damaged_bytes(small[:700], chance) + small[700:])
            try:
                look_at(path)
            except ExportError as error:
                refused.append(str(error))
            except BaseException as error:
                pytest.fail(f"{number}: {type(error).__name__}: {error}")
    assert len(refused) > 100
    assert not any("\n" in sentence for sentence in refused)


def test_damaged_importance_matrices(tmp_path: Path) -> None:
    path = tmp_path / "i.gguf"
    entry = ImatrixEntry(np.ones((1, 32), np.float32), np.array([3]))
    write_imatrix(path, {"blk.0.attn_q.weight": entry}, datasets=["a"], chunks=1, chunk_size=32)
    sound, chance = path.read_bytes(), random.Random(0)
    with limited():
        for number in range(200):
            path.write_bytes(damaged_bytes(sound, chance))
            try:
                with suppress(ExportError):
                    read_imatrix(path)
            except BaseException as error:
                pytest.fail(f"{number}: {type(error).__name__}: {error}")


def test_every_count_of_a_header_may_lie(small: bytes, tmp_path: Path) -> None:
    """At every byte of the header, each telling number: no count of any kind takes memory or time."""
    path = tmp_path / "x.gguf"
    header = small.index(b"output_norm") + 60
    with limited():
        for place in range(4, header):
            number = NUMBERS[place % len(NUMBERS)]
            path.write_bytes(small[:place] + struct.pack("<Q", number) + small[place + 8 :])
            with suppress(CheckpointError):
                check_bounds(path)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (struct.pack("<IIQ", 9, 0, 1 << 60), "an array of 1,152,921,504,606,846,976 values"),
        (struct.pack("<IIQ", 9, 8, 1 << 60), "an array of"),
        (struct.pack("<IIQ", 9, 0, 100_000), "goes beyond byte"),
        (struct.pack("<IIQ", 9, 9, 1), "an array of type 9"),
        (struct.pack("<IIQ", 9, 99, 1), "an array of type 99"),
        (struct.pack("<IQ", 8, 1 << 62), "a string of"),
        (struct.pack("<I", 99), "a value of type 99"),
        (struct.pack("<I", 10), "goes beyond byte"),
    ],
)
def test_values_that_are_not_there(value: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k" + value)
    with pytest.raises(CheckpointError, match=words):
        open_gguf(path)


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "version"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "1,152,921,504,606,846,976 fields"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<QI", 0, 1 << 31), "dimensions"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<QIQQ", 0, 2, 1 << 40, 1 << 40), "weights"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<QIIQ", 0, 0, 0, 1 << 63), "a tensor at byte"),
        (b"GGUF", "goes beyond byte 4"),
        (b"GGML", "does not begin with GGUF"),
        (b"", "does not begin with GGUF"),
    ],
)
def test_files_that_are_not_gguf(start: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(start)
    with pytest.raises(CheckpointError, match=words):
        open_gguf(path)
