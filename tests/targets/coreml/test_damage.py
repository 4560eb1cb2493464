"""Damaged Core ML folders are refused in one sentence, and none reads a file outside itself."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged_bytes, damaged_json, limited

from qwen3_export.errors import CheckpointError, ExportError
from qwen3_export.targets.coreml.mil.package import open_package
from qwen3_export.targets.coreml.names import MODEL_FILE, PACKAGE, WEIGHT_FILE
from qwen3_export.targets.coreml.read import open_coreml, tensor_differences


@pytest.fixture
def copied(packaged: Callable[..., Any], tmp_path: Path) -> Path:
    """A small export, to be damaged."""
    return Path(shutil.copytree(packaged("tied", "fp16").folder, tmp_path / "out"))


def rename_weights(folder: Path, name: str) -> None:
    """Let the program name another file of weights."""
    from coremltools.proto import Model_pb2

    spec, path = Model_pb2.Model(), folder / PACKAGE / MODEL_FILE
    spec.ParseFromString(path.read_bytes())
    function = spec.mlProgram.functions["main"]
    for operation in function.block_specializations[function.opset].operations:
        for value in operation.attributes.values():
            if value.WhichOneof("value") == "blobFileValue":
                value.blobFileValue.fileName = name
    path.write_bytes(spec.SerializeToString())


@pytest.mark.parametrize("name", ["@model_path/../../../secret", "/etc/passwd", "@model_path//etc/passwd", ""])
def test_weights_outside_the_package_are_refused(name: str, copied: Path) -> None:
    rename_weights(copied, name)
    for opened in (lambda: open_coreml(copied), lambda: open_package(copied / PACKAGE)):
        with pytest.raises(CheckpointError, match=r"model\.mlmodel: names the file"):
            opened()


def test_another_file_of_weights_than_the_one_that_is_read_is_refused(copied: Path) -> None:
    shutil.copyfile(copied / PACKAGE / WEIGHT_FILE, (copied / PACKAGE / WEIGHT_FILE).with_name("other.bin"))
    rename_weights(copied, "@model_path/weights/other.bin")
    with pytest.raises(CheckpointError, match=r"keeps .* in other\.bin"):
        open_coreml(copied)


def test_a_link_out_of_the_package_is_refused(copied: Path) -> None:
    path = copied / PACKAGE / WEIGHT_FILE
    path.rename(copied.parent / "elsewhere")
    path.symlink_to(copied.parent / "elsewhere")
    for opened in (lambda: open_coreml(copied), lambda: open_package(copied / PACKAGE)):
        with pytest.raises(CheckpointError, match="through a symbolic link"):
            opened()


def test_damaged_manifests(copied: Path) -> None:
    path, chance = copied / PACKAGE / "Manifest.json", random.Random(0)
    document = json.loads(path.read_bytes())
    root = document["rootModelIdentifier"]
    for place in ("../../../secret", "/etc/passwd", "", 3, None):
        entries = {root: {**document["itemInfoEntries"][root], "path": place}}
        path.write_text(json.dumps({**document, "itemInfoEntries": entries}))
        with pytest.raises(CheckpointError):
            open_package(copied / PACKAGE)
    with limited():
        for number in range(40):
            path.write_bytes(damaged_json(document, chance))
            look_at(lambda: open_package(copied / PACKAGE), number)


def test_damaged_programs(copied: Path, packaged: Callable[..., Any]) -> None:
    path, chance = copied / PACKAGE / MODEL_FILE, random.Random(0)
    sound, graph = path.read_bytes(), packaged("tied", "fp16").model.graph
    with limited():
        for number in range(60):
            path.write_bytes(damaged_bytes(sound, chance))
            look_at(lambda: tensor_differences(open_coreml(copied), graph), number)
            look_at(lambda: open_package(copied / PACKAGE), number)


def look_at(opened: Callable[[], object], number: int) -> None:
    try:
        opened()
    except ExportError:
        pass
    except BaseException as error:
        pytest.fail(f"{number}: {type(error).__name__}: {error}")
