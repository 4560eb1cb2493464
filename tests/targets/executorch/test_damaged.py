"""Damaged programs: each ends in a sentence or a report; where ExecuTorch crashes, it takes only its process along.

ExecuTorch checks the outline of a program, and trusts what lies within. So a case may end the process that opened it;
the command line opens artifacts in a process of its own for that reason (tests/cli/test_guard.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from damage import damaged

pytest.importorskip("executorch")

from qwen3_export.checkpoint.model import load
from qwen3_export.targets.executorch.export import prepare, write
from qwen3_export.targets.executorch.recipes import find_recipe
from qwen3_export.targets.executorch.stored import INDEX
from qwen3_export.targets.executorch.target import ExecutorchOptions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> Path:
    """A random layer as 8da4w, of short sequences."""
    model = load(model_folder("tied"))
    model = replace(model, graph=model.graph.truncated(0, 1))
    out = tmp_path_factory.mktemp("damaged") / "out"
    options = ExecutorchOptions(max_seq_len=64, group_size=64)
    write(prepare(model, find_recipe("8da4w"), out=out, options=options))
    return out


@pytest.mark.parametrize(
    ("name", "seeds", "commands"),
    [
        ("model.pte", range(200), ("lint",)),
        ("model.pte", range(200, 210), ("check", "run")),
        (INDEX, range(210, 310), ("inspect", "lint")),
        (INDEX, range(310, 316), ("check",)),
        ("tokenizer_config.json", range(316, 330), ("lint",)),
    ],
)
def test_every_damage_ends_in_a_sentence(
    folder: Path,
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    seeds: range,
    commands: Sequence[str],
) -> None:
    endings = damaged(folder, name, model_folder("tied"), seeds, commands=commands, scratch=tmp_path)
    allowed = {"sound", "refused", "crash"} if name == "model.pte" else {"sound", "refused"}
    bad = [ending for ending in endings if ending.kind not in allowed]
    assert not bad, "\n".join(f"{e.seed} {e.command} {e.kind}: {e.told}" for e in bad[:5])
    assert {ending.seed for ending in endings} == set(seeds)
