"""Scales in a GGUF file's metadata: there and back, and nothing that is broken goes unnoticed."""

from __future__ import annotations

import numpy as np
import pytest

from qwen3_export.errors import CheckpointError
from qwen3_export.quantizers.transforms import Fold, Pair
from qwen3_export.targets.gguf.scales import PLACES, VALUES, read_scales, scales_metadata

SCALES = {
    Fold(Pair.INPUT_LAYERNORM, 3): np.array([1.5, 0.25, 3e-7], np.float32),
    Fold(Pair.UP_PROJ, 0, 17): np.array([1.0], np.float32),
}


def plain(metadata: dict) -> dict:
    return {key: value.value for key, value in metadata.items()}


def test_there_and_back() -> None:
    found = read_scales(plain(scales_metadata(SCALES)))
    assert found.keys() == SCALES.keys()
    for place, scale in SCALES.items():
        np.testing.assert_array_equal(found[place], scale)


def test_a_file_without_scales_says_nothing_of_them() -> None:
    assert scales_metadata({}) == {}
    assert read_scales({"general.name": "x"}) == {}


@pytest.mark.parametrize(
    ("places", "values"),
    [
        (["input_layernorm.3"], []),
        (["gate_proj.3"], ["AACAPw=="]),
        (["input_layernorm.x"], ["AACAPw=="]),
        (["input_layernorm.3"], ["AACAP"]),
        (["input_layernorm.3"], ["AAC="]),
        (["input_layernorm.3"], [7]),
    ],
)
def test_what_cannot_be_read_is_refused(places: list[str], values: list[object]) -> None:
    with pytest.raises(CheckpointError, match="export it again"):
        read_scales({PLACES: places, VALUES: values})
