"""Damaged ONNX folders are refused in one sentence, and none reads a file outside itself."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import damaged_bytes, limited

from qwen3_export.errors import CheckpointError, ExportError
from qwen3_export.targets.onnx.read import open_onnx, tensor_differences


@pytest.fixture
def copied(exported: Callable[..., Any], tmp_path: Path) -> Path:
    """A small export, to be damaged."""
    return Path(shutil.copytree(exported("tied", "int4").folder, tmp_path / "out"))


def relocate(folder: Path, location: str) -> None:
    """Let the graph name another data file."""
    import onnx

    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(proto.SerializeToString())


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "sub/../../secret", "", "a\\b"])
def test_weights_outside_the_folder_are_refused(location: str, copied: Path) -> None:
    (copied.parent / "secret").write_bytes(bytes(1 << 20))
    relocate(copied, location)
    with pytest.raises(CheckpointError, match=r"model\.onnx: names the file"):
        open_onnx(copied)


def test_a_link_out_of_the_folder_is_refused(copied: Path) -> None:
    (copied / "model.onnx.data").rename(copied.parent / "elsewhere")
    (copied / "model.onnx.data").symlink_to("../elsewhere")
    with pytest.raises(CheckpointError, match="through a symbolic link"):
        open_onnx(copied)


def test_a_folder_in_a_hugging_face_cache_is_read(copied: Path, exported: Callable[..., Any], tmp_path: Path) -> None:
    repository = tmp_path / "models--org--name"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(copied.iterdir())):
        path.rename(repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert not tensor_differences(open_onnx(snapshot), exported("tied", "int4").model.graph)


def test_damaged_graphs(copied: Path, exported: Callable[..., Any]) -> None:
    path, chance, refused = copied / "model.onnx", random.Random(0), []
    sound, graph = path.read_bytes(), exported("tied", "int4").model.graph
    with limited():
        for number in range(150):
            path.write_bytes(damaged_bytes(sound, chance))
            try:
                refused += tensor_differences(open_onnx(copied), graph)[:1]
            except ExportError as error:
                refused.append(str(error))
            except BaseException as error:
                pytest.fail(f"{number}: {type(error).__name__}: {error}")
    assert len(refused) > 30
