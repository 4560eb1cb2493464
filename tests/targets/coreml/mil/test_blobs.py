"""weight.bin as coremltools writes it, and what is wrong with other files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwen3_export.errors import CheckpointError
from qwen3_export.targets.coreml.mil.blobs import Blob, check_blob, read_blob
from qwen3_export.targets.coreml.mil.element_types import by_name

pytest.importorskip("coremltools")

NAMES = {"fp16": "fp16", "fp32": "float"}
TYPES = ["uint1", "uint2", "uint3", "uint4", "uint6", "uint8", "int4", "int8", "int16", "uint16", "int32", "uint32"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Blob, np.ndarray]]:
    """One file with an array of each type, of a length that fills no byte."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    path = tmp_path_factory.mktemp("blobs") / "weight.bin"
    writer, random, found = _BlobStorageWriter(str(path)), np.random.default_rng(0), {}
    for name in [*TYPES, *NAMES]:
        element = by_name(name)
        low = -(1 << (element.bits - 1)) if element.is_signed else 0
        if element.is_float:
            values = random.normal(size=(3, 5)).astype(element.numpy_type)
        else:
            values = random.integers(low, low + (1 << element.bits), (3, 5)).astype(element.numpy_type)
        flat = values.reshape(-1).view(np.uint16) if name == "fp16" else values.reshape(-1)
        offset = getattr(writer, f"write_{NAMES.get(name, name)}_data")(np.ascontiguousarray(flat))
        found[name] = (Blob(path=path, offset=offset, element=element, shape=(3, 5)), values)
    del writer
    return found


@pytest.mark.parametrize("name", [*TYPES, *NAMES])
def test_every_type_is_read_as_it_was_written(written: dict[str, tuple[Blob, np.ndarray]], name: str) -> None:
    blob, values = written[name]
    check_blob(blob)
    np.testing.assert_array_equal(read_blob(blob), values)
    assert read_blob(blob).dtype == values.dtype


def test_small_integers_are_read_whole_across_chunks(tmp_path: Path) -> None:
    from coremltools.libmilstoragepython import _BlobStorageWriter

    for name in ("uint3", "uint6", "int4"):
        values = (np.arange(2_200_001) * 7 % (1 << by_name(name).bits)).astype(np.uint8)
        if name == "int4":
            values = (values.astype(np.int8) - 8).astype(np.int8)
        writer = _BlobStorageWriter(str(tmp_path / name))
        offset = getattr(writer, f"write_{name}_data")(values)
        del writer
        blob = Blob(path=tmp_path / name, offset=offset, element=by_name(name), shape=values.shape)
        np.testing.assert_array_equal(read_blob(blob), values)


def test_a_blob_of_another_type_or_size_is_refused(written: dict[str, tuple[Blob, np.ndarray]]) -> None:
    blob, _ = written["int8"]
    for other in (
        Blob(path=blob.path, offset=blob.offset, element=by_name("uint8"), shape=blob.shape),
        Blob(path=blob.path, offset=blob.offset, element=blob.element, shape=(3, 6)),
        Blob(path=blob.path, offset=blob.offset + 64, element=blob.element, shape=blob.shape),
    ):
        with pytest.raises(CheckpointError, match="program and weights are not of one export"):
            check_blob(other)


def test_another_file_is_no_weight_file(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    path.write_bytes(b"GGUF" + bytes(200))
    with pytest.raises(CheckpointError, match="not a weight file of Core ML"):
        check_blob(Blob(path=path, offset=64, element=by_name("fp16"), shape=(2,)))
