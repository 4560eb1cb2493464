"""Calibration text to windows, and every text that is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.tokenizer import Tokenizer, load_tokenizer
from qwen3_export.errors import CalibrationError
from qwen3_export.graph import Graph

PROSE = " ".join(
    f"The {i}th ship of the fleet carried {i * i} bales of wool and a crew of {i % 7}." for i in range(200)
)


@pytest.fixture(scope="module")
def tokenizer(demo_folder: Path, demo_graph: Graph) -> Tokenizer:
    return load_tokenizer(demo_folder, demo_graph.config)


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_sample_of_the_package_is_enough(tokenizer: Tokenizer) -> None:
    calibration = read_calibration(None, tokenizer)
    assert calibration.num_tokens > 32 * 512
    assert all(len(window_T) == 512 for window_T in calibration.windows)


def test_windows_follow_each_other_in_the_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    calibration = read_calibration(written(tmp_path, "a.txt", PROSE), tokenizer, sequence_length=100)
    row = np.concatenate(calibration.windows)
    assert row.tolist() == tokenizer.encode(PROSE)[: len(row)]
    assert calibration.source == "a.txt"


def test_the_seed_draws_among_more_windows_than_wanted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", PROSE)
    digests = [
        read_calibration(path, tokenizer, sequence_length=50, num_samples=4, seed=seed).digest for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_dialogues_are_rendered_by_the_checkpoints_template(tokenizer: Tokenizer, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": PROSE}, {"role": "assistant", "content": "Aye."}]
    lines = [json.dumps({"messages": messages}), "", json.dumps({"text": "Plain."})]
    calibration = read_calibration(written(tmp_path, "a.jsonl", "\n".join(lines)), tokenizer, sequence_length=10**6)
    assert len(calibration.windows) == 1
    text = tokenizer.decode(calibration.windows[0].tolist())
    assert text == tokenizer.render(messages, add_generation_prompt=False) + "Plain."


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "has no text"),
        ("a.txt", "Hello there, this is all there is and it is not much to go by.", "only .* tokens"),
        ("a.txt", " the" * 5000, "different tokens"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", "", "has no text"),
        ("a.jsonl", "{", "line 1: is not JSON"),
        ("a.jsonl", "[1]", "no JSON object"),
        ("a.jsonl", '{"prompt": "x"}', "neither text"),
        ("a.jsonl", '{"messages": "hello"}', "neither text"),
        ("a.jsonl", '{"text": "x"}\n{"messages": [{"role": "user"}]}', "line 2"),
    ],
)
def test_what_cannot_calibrate_is_refused_in_a_sentence(
    tokenizer: Tokenizer, tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(CalibrationError, match=message):
        read_calibration(written(tmp_path, name, content), tokenizer)


def test_a_missing_file_is_named(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"nowhere\.txt: cannot be read"):
        read_calibration(tmp_path / "nowhere.txt", tokenizer)


def test_no_windows_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(CalibrationError, match="take 1 of 2 at least"):
        read_calibration(None, tokenizer, num_samples=0)
