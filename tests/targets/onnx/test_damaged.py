"""Damaged ONNX folders through whole commands: each ends in a sentence or in a report, for any damage to any file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from damage import damaged, unforeseen
from models import TINY, write_model

pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")

from qwen3_export.checkpoint.model import load
from qwen3_export.errors import CheckpointError
from qwen3_export.targets.onnx.export import prepare, write
from qwen3_export.targets.onnx.inspect import inspect
from qwen3_export.targets.onnx.recipes import find_recipe
from qwen3_export.targets.onnx.target import OnnxOptions

DOCUMENTS: Mapping[str, range] = {
    "tokenizer.json": range(3),
    "tokenizer_config.json": range(10),
    "chat_template.jinja": range(4),
}
GENAI: Mapping[str, range] = {
    "model.onnx": range(80),
    "model.onnx.data": range(5),
    "genai_config.json": range(20),
    **DOCUMENTS,
}
JAVASCRIPT: Mapping[str, range] = {
    "onnx/model_q4.onnx": range(10),
    "config.json": range(15),
    "generation_config.json": range(8),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A folder of two narrow layers in a flavour, and the checkpoint that it was made of."""
    root = tmp_path_factory.mktemp("damaged")
    checkpoint = write_model(root / "model", "tied", **TINY)

    def make(flavour: str) -> tuple[Path, Path]:
        folder = root / flavour
        if not folder.exists():
            options = OnnxOptions(flavour=flavour)
            write(prepare(load(checkpoint), find_recipe("int4"), out=folder, options=options))
        return folder, checkpoint

    return make


@pytest.mark.parametrize(("flavour", "cases"), [("genai", GENAI), ("transformers.js", JAVASCRIPT)])
def test_inspect_and_lint(flavour: str, cases: Mapping[str, range], small, tmp_path: Path) -> None:
    endings = damaged(*small(flavour), cases, commands=("inspect", "lint"), scratch=tmp_path)
    assert not unforeseen(endings), unforeseen(endings)[0]
    assert len([ending for ending in endings if ending.kind != "sound"]) > len(endings) / 5


def test_check_and_run(small, tmp_path: Path) -> None:
    cases = {"model.onnx": range(2, 6), "genai_config.json": range(2, 4)}
    endings = damaged(*small("genai"), cases, commands=("check", "run"), scratch=tmp_path)
    assert not unforeseen(endings), unforeseen(endings)[0]


def test_a_record_that_is_not_utf_8(small, tmp_path: Path) -> None:
    sound = (small("genai")[0] / "model.onnx").read_bytes()
    assert b"qwen3_export.version" in sound
    path = tmp_path / "model.onnx"
    path.write_bytes(sound.replace(b"qwen3_export.version", b"qwen3_export.ver\xff\xfeon"))
    (tmp_path / "model.onnx.data").write_bytes((small("genai")[0] / "model.onnx.data").read_bytes())
    with pytest.raises(CheckpointError, match=r"model\.onnx: has a name or a record that is not UTF-8"):
        inspect(path)
