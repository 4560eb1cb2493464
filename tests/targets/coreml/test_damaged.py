"""Damaged packages: each is refused in one sentence or read as it is; no traceback, no hang, no gigabyte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from damage import damaged

pytest.importorskip("coremltools")

from qwen3_export.targets.coreml.names import MODEL_FILE, PACKAGE, WEIGHT_FILE

MODEL, WEIGHTS = f"{PACKAGE}/{MODEL_FILE}", f"{PACKAGE}/{WEIGHT_FILE}"


@pytest.mark.parametrize(
    ("name", "seeds", "commands", "in_fields"),
    [
        (MODEL, range(250), ("inspect", "lint"), True),
        (MODEL, range(250, 400), ("inspect", "lint"), False),
        (WEIGHTS, range(400, 480), ("inspect", "lint"), False),
        (f"{PACKAGE}/Manifest.json", range(480, 520), ("inspect", "lint"), False),
        ("config.json", range(520, 540), ("inspect", "lint"), False),
        ("chat_template.jinja", range(540, 550), ("inspect", "lint"), False),
        (MODEL, range(550, 556), ("check", "run"), True),
        (WEIGHTS, range(556, 560), ("check", "run"), False),
    ],
)
def test_every_damage_ends_in_a_sentence(
    packaged: Callable[..., Any],
    model_folder: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    seeds: range,
    commands: Sequence[str],
    in_fields: bool,
) -> None:
    folder = packaged("tied", "int4", context_length=64, group_size=64).folder
    endings = damaged(
        folder, name, model_folder("tied"), seeds, commands=commands, scratch=tmp_path, in_fields=in_fields
    )
    assert {(ending.seed, ending.command) for ending in endings} == {(s, c) for s in seeds for c in commands}
    bad = [ending for ending in endings if ending.kind not in {"sound", "refused"}]
    assert not bad, "\n".join(f"{e.seed} {e.command} {e.kind}: {e.told}" for e in bad[:5])
    assert all("\n" not in ending.told for ending in endings)
