"""Damaged ExecuTorch folders through whole commands: each ends in a sentence or in a report.

The runtime may crash on a damaged program, as native code does. The command line tells that in a sentence
(``cli/guard.py``), so a crash counts as foreseen here for the program alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from damage import damaged, unforeseen
from models import TINY, write_model

pytest.importorskip("executorch")

from qwen3_export.checkpoint.model import load
from qwen3_export.errors import CheckpointError
from qwen3_export.targets.executorch.check import program_path
from qwen3_export.targets.executorch.export import PROGRAM, prepare, write
from qwen3_export.targets.executorch.recipes import find_recipe
from qwen3_export.targets.executorch.stored import INDEX
from qwen3_export.targets.executorch.target import ExecutorchOptions

CASES: Mapping[str, range] = {
    INDEX: range(25),
    "tokenizer_config.json": range(6),
    "tokenizer.json": range(3),
    "chat_template.jinja": range(4),
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of one narrow layer, and the checkpoint that it was made of."""
    root = tmp_path_factory.mktemp("damaged")
    checkpoint = write_model(root / "model", "tied", **TINY | {"num_hidden_layers": 1})
    options = ExecutorchOptions(max_seq_len=96)
    write(prepare(load(checkpoint), find_recipe("8da4w"), out=root / "out", options=options))
    return root / "out", checkpoint


def test_inspect_and_lint(small: tuple[Path, Path], tmp_path: Path) -> None:
    endings = damaged(*small, CASES, commands=("inspect", "lint"), scratch=tmp_path)
    assert not unforeseen(endings), unforeseen(endings)[0]
    assert len([ending for ending in endings if ending.kind != "sound"]) > len(endings) / 5


def test_check_and_run(small: tuple[Path, Path], tmp_path: Path) -> None:
    endings = damaged(*small, {INDEX: range(2, 5)}, commands=("check", "run"), scratch=tmp_path)
    assert not unforeseen(endings), unforeseen(endings)[0]


def test_programs(small: tuple[Path, Path], tmp_path: Path) -> None:
    endings = damaged(*small, {PROGRAM: range(6)}, commands=("lint", "run"), scratch=tmp_path)
    wrong = [ending for ending in unforeseen(endings) if ending.kind != "crash"]
    assert not wrong, wrong[0]


def test_a_folder_in_the_program_s_place(tmp_path: Path) -> None:
    (tmp_path / PROGRAM).mkdir()
    with pytest.raises(CheckpointError, match=r"holds no model\.pte"):
        program_path(tmp_path)
