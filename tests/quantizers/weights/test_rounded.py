"""Rounded weights: read block by block, in any format, and run through the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import BF16, F16, F32
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.transforms import scaled
from qwen3_export.quantizers.weights.protocols import QuantizedWeight, code_format
from qwen3_export.quantizers.weights.rounded import RoundedWeight, round_graph
from qwen3_export.reference.model import logits

FORMATS: dict[str, NumberFormat] = {
    "float": BF16,
    "blocks": GGML_FORMATS["Q4_K"],
    "affine": AffineFormat(num_bits=4, group_size=32, symmetric=False),
    "channel": AffineFormat(num_bits=8),
    "palette": PaletteFormat(num_bits=4, rows_per_table=16),
    "one table": PaletteFormat(num_bits=6),
}


@pytest.fixture
def graph(model_graph: Callable[[str], Graph]) -> Graph:
    return model_graph("untied")


@pytest.mark.parametrize("kind", FORMATS)
def test_blocks_of_rows_equal_the_whole(kind: str, graph: Graph) -> None:
    number_format, source = FORMATS[kind], graph[Role(Kind.K_PROJ, 0)]
    importance = np.linspace(0.1, 2, source.shape[1], dtype=np.float32)
    weight = RoundedWeight(source=source, number_format=number_format, importance=importance)
    codes, params = number_format.encode(source.read(), importance)
    whole = number_format.dequantize(codes, params)
    assert isinstance(weight, QuantizedWeight)
    assert (weight.format, weight.shape) == (number_format.name, source.shape)
    assert code_format(weight) == (None if number_format.is_float else number_format)
    np.testing.assert_array_equal(weight.read(), whole)
    for rows in (slice(0, 16), slice(16, 48), slice(5, 7), slice(9, 40), slice(120, None)):
        np.testing.assert_array_equal(weight.read(rows), whole[rows])
    if number_format.rows_together:
        np.testing.assert_array_equal(weight.encode(slice(16, 64))[0], codes[16:64])


def test_a_vector_is_one_row(graph: Graph) -> None:
    source = graph[Role(Kind.NORM)]
    weight = RoundedWeight(source=source, number_format=F32)
    assert weight.encode()[0].shape == (1, *source.shape)
    np.testing.assert_array_equal(weight.read(), source.read())
    np.testing.assert_array_equal(weight.read(slice(3, 8)), source.read()[3:8])


def test_a_block_that_cuts_a_table_has_no_codes(graph: Graph) -> None:
    weight = RoundedWeight(source=graph[Role(Kind.K_PROJ, 0)], number_format=FORMATS["palette"])
    with pytest.raises(QuantizationError, match="k_proj: rows 8 to 24 cut through a table of 16 rows"):
        weight.encode(slice(8, 24))


def test_the_reference_runs_over_codes(graph: Graph) -> None:
    tokens = torch.arange(40, 64)
    exact = logits(graph, tokens)
    errors = []
    for bits in (3, 5, 8):
        number_format = AffineFormat(num_bits=bits, group_size=32)
        formats = {weight.name: number_format for weight in graph if len(weight.shape) == 2}
        rounded = round_graph(graph, formats)
        assert rounded.head.format == number_format.name
        assert rounded[Role(Kind.NORM)].format == graph[Role(Kind.NORM)].format
        errors.append(float((logits(rounded, tokens) - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.04


def test_refusals_name_the_weight(graph: Graph) -> None:
    name = "model.layers.0.self_attn.k_proj"
    with pytest.raises(
        QuantizationError, match=f"{name}: in_features 256 is not a multiple of `group_size` 100; use 16"
    ):
        round_graph(graph, {name: AffineFormat(num_bits=4, group_size=100)})
    with pytest.raises(QuantizationError, match=f"{name}: out_features 128 is not a multiple of `rows_per_table` 48"):
        round_graph(graph, {name: PaletteFormat(num_bits=4, rows_per_table=48)})
    with pytest.raises(QuantizationError, match=r"model.norm: a vector"):
        round_graph(graph, {"model.norm": AffineFormat(num_bits=8)})
    with pytest.raises(QuantizationError, match="no such weight"):
        round_graph(graph, {"model.layers.9.mlp.up_proj": AffineFormat(num_bits=8)})
    with pytest.raises(QuantizationError, match=f"{name}: in_features is 256, its importance has 3 values"):
        round_graph(graph, {name: AffineFormat(num_bits=8)}, importance={name: np.ones(3, np.float32)})
    huge = RoundedWeight(source=scaled(graph.weights[name], rows=np.full(128, 1e9, np.float32)), number_format=F16)
    with pytest.raises(QuantizationError, match=f"{name}: a weight of magnitude"):
        huge.read()
