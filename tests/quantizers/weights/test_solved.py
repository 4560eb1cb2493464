"""Solved weights: what was saved is read back, in any format, and only the rows that are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3_export.errors import CheckpointError, QuantizationError
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.weights import solved
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.quantizers.weights.solved import SolvedWeight, save_solved

FORMATS: dict[str, NumberFormat] = {
    "blocks": GGML_FORMATS["Q4_K"],
    "affine": AffineFormat(num_bits=4, group_size=32, symmetric=False),
    "channel": AffineFormat(num_bits=8),
    "palette": PaletteFormat(num_bits=4, rows_per_table=16),
    "one table": PaletteFormat(num_bits=6),
}


@pytest.fixture
def solve(model_graph: Callable[[str], Graph], tmp_path: Path) -> Callable[[str], tuple[SolvedWeight, np.ndarray]]:
    """A weight [128, 256] in a format, saved and opened, and its values."""

    def save(kind: str) -> tuple[SolvedWeight, np.ndarray]:
        source, number_format = model_graph("untied")[Role(Kind.K_PROJ, 0)], FORMATS[kind]
        codes, params = number_format.encode(source.read())
        path = tmp_path / f"{source.name}.solved"
        save_solved(path, number_format, codes, params)
        weight = SolvedWeight(role=source.role, shape=source.shape, number_format=number_format, path=path)
        return weight, number_format.dequantize(codes, params)

    return save


@pytest.mark.parametrize("kind", FORMATS)
def test_any_rows_come_back(kind: str, solve: Callable[[str], tuple[SolvedWeight, np.ndarray]]) -> None:
    weight, whole = solve(kind)
    assert isinstance(weight, QuantizedWeight)
    assert weight.format == FORMATS[kind].name
    np.testing.assert_array_equal(weight.read(), whole)
    for rows in (slice(0, 16), slice(16, 48), slice(5, 7), slice(9, 40), slice(120, None), slice(4, 4)):
        np.testing.assert_array_equal(weight.read(rows), whole[rows])


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "one table"])
def test_a_block_reads_its_own_bytes_and_no_others(
    kind: str, solve: Callable[[str], tuple[SolvedWeight, np.ndarray]], monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, _ = solve(kind)
    counts: list[int] = []
    read = solved.read_exactly

    def count(path: Path, offset: int, num_bytes: int, *, part: str) -> bytearray:
        counts.append(num_bytes)
        return read(path, offset, num_bytes, part=part)

    monkeypatch.setattr(solved, "read_exactly", count)
    weight.encode(slice(32, 48))
    assert sum(counts) * 8 == weight.path.stat().st_size


def test_a_block_that_cuts_a_table_is_refused(solve: Callable[[str], tuple[SolvedWeight, np.ndarray]]) -> None:
    weight, _ = solve("palette")
    with pytest.raises(QuantizationError, match="k_proj: rows 8 to 24 cut through a table of 16 rows"):
        weight.encode(slice(8, 24))


def test_a_file_that_is_cut_short_is_refused(solve: Callable[[str], tuple[SolvedWeight, np.ndarray]]) -> None:
    weight, _ = solve("affine")
    with weight.path.open("r+b") as file:
        file.truncate(weight.path.stat().st_size - 1)
    with pytest.raises(CheckpointError, match="ends inside"):
        weight.read(slice(100, None))
