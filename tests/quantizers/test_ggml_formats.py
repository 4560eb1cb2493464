"""The table of formats, against gguf-py's constants and the rules a caller relies on."""

from __future__ import annotations

import subprocess
import sys

import gguf
import numpy as np
import pytest

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.ggml.layouts import LAYOUTS
from qwen3_export.quantizers.ggml.shapes import BLOCK_SHAPES


@pytest.mark.parametrize("name", GGML_FORMATS)
def test_sizes_are_ggufs(name: str) -> None:
    number_format = GGML_FORMATS[name]
    kind = gguf.GGMLQuantizationType[name]
    assert number_format.name == name
    assert (number_format.block_size, number_format.block_bytes) == gguf.GGML_QUANT_SIZES[kind]


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_layouts_fill_their_blocks(name: str) -> None:
    assert sum(field.size for field in LAYOUTS[name]) == GGML_FORMATS[name].block_bytes
    assert BLOCK_SHAPES[name].block_size == GGML_FORMATS[name].block_size


def test_bits_and_row_bytes() -> None:
    assert GGML_FORMATS["Q4_K"].bits_per_weight((3, 1024)) == 4.5
    assert GGML_FORMATS["Q6_K"].bits_per_weight((3, 1024)) == 6.5625
    assert GGML_FORMATS["Q4_K"].row_bytes(1024) == 576


@pytest.mark.parametrize("name", BLOCK_SHAPES)
def test_columns_that_blocks_do_not_divide_are_refused(name: str) -> None:
    columns = GGML_FORMATS[name].block_size + 16
    with pytest.raises(QuantizationError, match=rf"{name}: {columns} columns"):
        GGML_FORMATS[name].encode(np.zeros((1, columns), np.float32))


def test_bytes_that_are_no_whole_blocks_are_refused() -> None:
    with pytest.raises(QuantizationError, match="143 bytes"):
        GGML_FORMATS["Q4_K"].unpack(np.zeros((2, 143), np.uint8))


def test_importing_the_table_compiles_nothing() -> None:
    """A command that only lists formats must not wait for a compiler."""
    code = "import sys, qwen3_export.quantizers.ggml; sys.exit('numba' in sys.modules or 'llvmlite' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
