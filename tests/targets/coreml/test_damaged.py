"""Damaged Core ML folders through whole commands: each ends in a sentence or a report, whatever file is damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from damage import damaged, unforeseen
from models import TINY, write_model

pytest.importorskip("coremltools")

from qwen3_export.checkpoint.model import load
from qwen3_export.graph import Kind, Role
from qwen3_export.targets.coreml.export import prepare, write
from qwen3_export.targets.coreml.lint import lint_coreml
from qwen3_export.targets.coreml.names import MODEL_FILE, PACKAGE, WEIGHT_FILE
from qwen3_export.targets.coreml.recipes import find_recipe
from qwen3_export.targets.coreml.stored import stored_weight
from qwen3_export.targets.coreml.target import CoremlOptions

PROGRAM, WEIGHTS = f"{PACKAGE}/{MODEL_FILE}", f"{PACKAGE}/{WEIGHT_FILE}"
CASES: Mapping[str, range] = {
    PROGRAM: range(25),
    WEIGHTS: range(8),
    f"{PACKAGE}/Manifest.json": range(10),
    "config.json": range(8),
    "tokenizer_config.json": range(6),
    "tokenizer.json": range(3),
    "chat_template.jinja": range(4),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of two narrow layers, and the checkpoint that it was made of."""
    root = tmp_path_factory.mktemp("damaged")
    checkpoint = write_model(root / "model", "tied", **TINY)
    write(prepare(load(checkpoint), find_recipe("int4"), out=root / "out", options=CoremlOptions()))
    return root / "out", checkpoint


def test_inspect_and_lint(small: tuple[Path, Path], tmp_path: Path) -> None:
    endings = damaged(*small, CASES, commands=("inspect", "lint"), scratch=tmp_path)
    assert not unforeseen(endings), unforeseen(endings)[0]
    assert len([ending for ending in endings if ending.kind != "sound"]) > len(endings) / 5


def test_check_and_run(small: tuple[Path, Path], tmp_path: Path) -> None:
    endings = damaged(*small, {PROGRAM: range(2, 4)}, commands=("check", "run"), scratch=tmp_path)
    assert not unforeseen(endings), unforeseen(endings)[0]


def test_a_weight_without_codes(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        stored_weight(Role(Kind.LM_HEAD), {}, tmp_path / "weight.bin")


def test_a_template_that_is_not_utf_8_is_a_finding(small: tuple[Path, Path]) -> None:
    folder, checkpoint = small
    path, model = folder / "chat_template.jinja", load(checkpoint)
    sound = path.read_bytes()
    path.write_bytes(b"\xff\xfe" + sound)
    try:
        found = [finding.text for finding in lint_coreml(folder, model.graph, model.tokenizer)]
    finally:
        path.write_bytes(sound)
    assert any("chat_template.jinja: cannot be read as UTF-8 text" in text for text in found)
