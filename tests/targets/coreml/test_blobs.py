"""weight.bin, as coremltools' own storage library reads and writes it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("coremltools")

from qwen3_export.errors import CheckpointError
from qwen3_export.targets.coreml.blobs import (
    ELEMENTS,
    RECORD_BYTES,
    Blob,
    aligned,
    header_bytes,
    read_record,
    read_values,
)

ELEMENT_COUNT = 37  # fills no byte, whatever the size of an element


def some_values(element: str) -> np.ndarray:
    kind, random = ELEMENTS[element], np.random.default_rng(0)
    if element.startswith("fp"):
        return random.standard_normal(ELEMENT_COUNT).astype(kind.dtype)
    low = -(1 << (kind.num_bits - 1)) if kind.is_signed else 0
    return random.integers(low, low + (1 << kind.num_bits), ELEMENT_COUNT).astype(
        np.int8 if kind.is_signed else np.uint8
    )


def write_officially(path: Path, element: str, values: np.ndarray) -> int:
    """The offset that coremltools' writer gives."""
    from coremltools.libmilstoragepython import _BlobStorageWriter

    method = {"fp16": "fp16", "fp32": "float"}.get(element, element)
    stored = values.view(np.uint16) if element == "fp16" else values
    return int(getattr(_BlobStorageWriter(str(path)), f"write_{method}_data")(stored))


@pytest.mark.parametrize("element", ELEMENTS)
def test_an_official_file_is_read_and_written_alike(element: str, tmp_path: Path) -> None:
    path, values = tmp_path / "weight.bin", some_values(element)
    offset = write_officially(path, element, values)
    blob = read_record(path, offset, name="values", element=element, shape=values.shape)
    np.testing.assert_array_equal(read_values(path, blob), values)
    for first, count in ((0, 5), (3, 20), (8, 8), (36, 1)):
        np.testing.assert_array_equal(read_values(path, blob, first=first, count=count), values[first : first + count])
    official = path.read_bytes()
    assert official[: blob.offset] == header_bytes(1)
    assert official[blob.offset : blob.data_offset] == blob.record()
    assert blob.end == len(official)


def test_places_are_multiples_of_64() -> None:
    assert [aligned(offset) for offset in (0, 1, 64, 65)] == [0, 64, 64, 128]
    assert (
        len(header_bytes(3))
        == RECORD_BYTES
        == len(Blob(name="x", element="fp16", shape=(3,), offset=64, data_offset=128).record())
    )


def test_another_array_than_the_program_says_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weight.bin"
    offset = write_officially(path, "int4", some_values("int4"))
    with pytest.raises(CheckpointError, match="is not the int8 array of shape"):
        read_record(path, offset, name="codes", element="int8", shape=(ELEMENT_COUNT,))
    with pytest.raises(CheckpointError, match=r"is not the int4 array of shape \[99\]"):
        read_record(path, offset, name="codes", element="int4", shape=(99,))
    with pytest.raises(CheckpointError, match="no array begins at byte 0"):
        read_record(path, 0, name="codes", element="int4", shape=(ELEMENT_COUNT,))
    with pytest.raises(CheckpointError, match="ends inside the record of codes"):
        read_record(path, 1 << 20, name="codes", element="int4", shape=(ELEMENT_COUNT,))
