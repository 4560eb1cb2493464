"""Warnings of fp16's range: by the names of the layers, and only where they are due."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from qwen3_export.calibration.columns import ColumnStatistics
from qwen3_export.calibration.fp16 import fp16_warnings
from qwen3_export.calibration.statistics import Origin, Statistics
from qwen3_export.graph import Kind, Role
from qwen3_export.reference.probe import Place, Site

ORIGIN = Origin(model="m", checkpoint="c", dataset="d", tokens="t", windows=1, num_tokens=1)


def columns(*largest: float) -> ColumnStatistics:
    zeros = np.zeros((1, len(largest)), np.float32)
    return ColumnStatistics(
        sum_of_squares_EI=zeros,
        sum_of_magnitudes_EI=zeros,
        max_magnitude_EI=np.array([largest], np.float32),
        count_E=np.array([1]),
        squared_shares_E=np.ones(1, np.float32),
    )


def warnings(inputs: Mapping[Role, float], states: Mapping[Site, float]) -> list[str]:
    found = Statistics(
        origin=ORIGIN,
        inputs={role: columns(0.0, largest) for role, largest in inputs.items()},
        states={site: columns(0.0, largest) for site, largest in states.items()},
    )
    return [str(warning) for warning in fp16_warnings(found)]


def test_nothing_is_said_of_a_calm_model() -> None:
    assert warnings({Role(Kind.DOWN_PROJ, 0): 16_000.0}, {Site(Place.OUTPUT, 0): 255.0}) == []


def test_values_near_the_end_come_first_and_worst_first() -> None:
    said = warnings(
        {Role(Kind.DOWN_PROJ, 3): 20_000.0},
        {Site(Place.MLP, 3): 131_008.0, Site(Place.AFTER_ATTENTION, 2): 300.0},
    )
    assert said == [
        "layer 3 mlp: |x| up to 131,008 in channel 1, 200% of what fp16 holds",
        "model.layers.3.mlp.down_proj input: |x| up to 20,000 in channel 1, 31% of what fp16 holds",
        "model.layers.2.post_attention_layernorm: |x| up to 300 in channel 1, whose square overflows fp16; "
        "take this norm in fp32",
    ]


def test_the_norm_that_reads_the_stream_is_named() -> None:
    squares = {Site(Place.INPUT, 0): 700.0, Site(Place.OUTPUT, 0): 600.0, Site(Place.OUTPUT, 1): 500.0}
    names = [warning.split(":")[0] for warning in warnings({}, squares)]
    assert names == ["model.layers.0.input_layernorm", "model.layers.1.input_layernorm", "model.norm"]


def test_inner_states_are_no_norms_input() -> None:
    assert warnings({}, {Site(Place.MLP, 0): 700.0, Site(Place.Q_ROPE, 0): 700.0}) == []
