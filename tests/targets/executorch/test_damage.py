"""Damaged indexes beside ExecuTorch programs are refused in one sentence."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from fuzzing import damaged_json, limited

from qwen3_export.errors import CheckpointError, ExportError
from qwen3_export.targets.executorch.stored import (
    INDEX,
    constant_differences,
    read_index,
    read_weights,
    weight_differences,
)

NAME = "model.layers.0.mlp.down_proj"
DIGEST = "0" * 64
DOCUMENT = {
    "qwen3_export.recipe": "8da4w",
    "group_size": 32,
    "constants": {"cos": [0], "sin": [8], "rms_norm_eps": [1, 2]},
    "weights": {
        NAME: {"layout": "int4", "group_size": 32, "codes": 16, "scales": 4000, "bytes": {"codes": 64, "scales": 8},
               "sha256": {"codes": DIGEST, "scales": DIGEST}},
        "model.norm": {"layout": "fp32", "codes": 8, "bytes": {"codes": 64}, "sha256": {"codes": DIGEST}},
    },
}  # fmt: skip


def test_damaged_indexes(tmp_path: Path, model_graph) -> None:
    chance, refused, graph = random.Random(0), 0, model_graph("tied")
    program = tmp_path / "model.pte"
    program.write_bytes(bytes(5000))
    with limited():
        for number in range(300):
            (tmp_path / INDEX).write_bytes(damaged_json(DOCUMENT, chance))
            try:
                document = read_index(tmp_path)
                weight_differences(program, document)
                constant_differences(program, graph, document, context=16)
                read_weights(program, graph, document)
            except ExportError:
                refused += 1
            except BaseException as error:
                pytest.fail(f"{number}: {type(error).__name__}: {error}")
    assert refused > 100


@pytest.mark.parametrize("place", [-1, 1 << 62, True, 1.5, "1", None])
def test_places_that_are_none(place: object, tmp_path: Path) -> None:
    for part in ("codes", "scales"):
        entry = {**DOCUMENT["weights"][NAME], part: place}  # type: ignore[index]
        (tmp_path / INDEX).write_text(json.dumps({**DOCUMENT, "weights": {NAME: entry}}))
        with pytest.raises(CheckpointError):
            read_index(tmp_path)


def test_a_sound_index(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps(DOCUMENT))
    assert read_index(tmp_path) == DOCUMENT
