"""Decoding, against gguf-py's independent reader: equal in every bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.ggml.layouts import LAYOUTS

Values = NDArray[np.float32]


def _random_blocks(name: str, *, rows: int, blocks: int) -> NDArray[np.uint8]:
    """Random bytes, but for the float16 fields, which get random finite numbers (NaN payloads are nobody's concern)."""
    random = np.random.default_rng(11)
    block_bytes = GGML_FORMATS[name].block_bytes
    blocks_NY = random.integers(0, 256, (rows * blocks, block_bytes), np.uint8)
    first = 0
    for field in LAYOUTS[name]:
        if field.holds in ("scale", "offset"):
            halves = random.standard_normal(rows * blocks).astype(np.float16)
            blocks_NY[:, first : first + 2] = halves[:, None].view(np.uint8)
        first += field.size
    return blocks_NY.reshape(rows, blocks * block_bytes)


def _assert_same_bits(ours: Values, theirs: Values) -> None:
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("name", LAYOUTS)
def test_random_blocks_decode_as_in_gguf(name: str) -> None:
    blocks_RY = _random_blocks(name, rows=5, blocks=6)
    number_format = GGML_FORMATS[name]
    decoded = number_format.dequantize(*number_format.unpack(blocks_RY))
    _assert_same_bits(decoded, gguf.dequantize(blocks_RY, GGMLQuantizationType[name]))


@pytest.mark.parametrize("name", LAYOUTS)
def test_unpacked_blocks_pack_to_the_same_bytes(name: str) -> None:
    blocks_RY = _random_blocks(name, rows=5, blocks=6)
    number_format = GGML_FORMATS[name]
    np.testing.assert_array_equal(number_format.pack(*number_format.unpack(blocks_RY)), blocks_RY)


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_our_blocks_decode_as_in_gguf(name: str, random_weights: dict[str, Values]) -> None:
    number_format = GGML_FORMATS[name]
    codes_RI, params = number_format.encode(random_weights["heavy"])
    blocks_RY, decoded = number_format.pack(codes_RI, params), number_format.dequantize(codes_RI, params)
    _assert_same_bits(decoded, gguf.dequantize(blocks_RY, GGMLQuantizationType[name]))
