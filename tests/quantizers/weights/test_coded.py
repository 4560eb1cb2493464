"""Weights that are codes: read block by block, and run through the reference."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.weights.coded import CodedFormat, CodedWeight, EncodedWeight, RoundedWeight, round_weights
from qwen3_export.reference.model import logits

FORMATS: dict[str, CodedFormat] = {
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
    lazy = RoundedWeight(source=source, number_format=number_format, importance=importance)
    codes, params = lazy.encode()
    held = EncodedWeight(name=lazy.name, role=lazy.role, number_format=number_format, codes_RI=codes, params=params)
    whole = number_format.dequantize(codes, params)
    for weight in (lazy, held):
        assert isinstance(weight, CodedWeight)
        assert (weight.format, weight.shape) == (number_format.name, source.shape)
        np.testing.assert_array_equal(weight.read(), whole)
        for rows in (slice(0, 16), slice(16, 48), slice(5, 7), slice(9, 40), slice(120, None)):
            np.testing.assert_array_equal(weight.read(rows), whole[rows])
        if number_format.rows_together:
            np.testing.assert_array_equal(weight.codes(slice(16, 64)), codes[16:64])


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
        rounded = round_weights(graph, formats)
        assert rounded.head.format == number_format.name
        assert rounded[Role(Kind.NORM)].format == graph[Role(Kind.NORM)].format
        errors.append(float((logits(rounded, tokens) - exact).norm() / exact.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.04


def test_refusals_name_the_weight(graph: Graph) -> None:
    name = "model.layers.0.self_attn.k_proj"
    with pytest.raises(QuantizationError, match=f"{name}: in_features 256 is not a multiple of group_size 100; use 16"):
        round_weights(graph, {name: AffineFormat(num_bits=4, group_size=100)})
    with pytest.raises(QuantizationError, match=f"{name}: out_features 128 is not a multiple of rows_per_table 48"):
        round_weights(graph, {name: PaletteFormat(num_bits=4, rows_per_table=48)})
    with pytest.raises(QuantizationError, match=r"model.norm: a vector"):
        round_weights(graph, {"model.norm": AffineFormat(num_bits=8)})
    with pytest.raises(QuantizationError, match="no such weight"):
        round_weights(graph, {"model.layers.9.mlp.up_proj": AffineFormat(num_bits=8)})
    bad = round_weights(graph, {name: AffineFormat(num_bits=8)}, importance={name: np.ones(3, np.float32)})
    with pytest.raises(QuantizationError, match=f"{name}: importance of shape"):
        bad.weights[name].read()
