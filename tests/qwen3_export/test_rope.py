"""Rotation turns pairs as complex numbers turn, and YaRN's frequencies are those of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from qwen3_export.config import YarnScaling
from qwen3_export.graph import Graph
from qwen3_export.rope import inverse_frequencies, rotate, rotation


def test_pairs_turn_like_complex_numbers(model_graph: Callable[[str], Graph]) -> None:
    config = model_graph("tied").config
    half = config.head_dim // 2
    x_TNH = torch.randn(6, 3, config.head_dim, dtype=torch.float64)
    pairs = torch.complex(x_TNH[..., :half], x_TNH[..., half:])
    positions = torch.arange(10, 16, dtype=torch.float64)
    frequencies = config.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = pairs * torch.polar(torch.tensor(1.0).double(), positions[:, None] * frequencies)[:, None]
    ours = rotate(x_TNH, rotation(config, start=10, count=6))
    assert torch.allclose(ours, torch.cat((turned.real, turned.imag), dim=-1), atol=1e-5)


@pytest.mark.parametrize(
    ("theta", "factor", "original"),
    [(1e6, 4.0, 32768), (5e6, 4.0, 262144), (1e6, 2.0, 512), (1e4, 8.0, 40), (1e6, 1.5, 7)],
)
def test_yarn_equals_transformers(
    theta: float, factor: float, original: int, model_graph: Callable[[str], Graph]
) -> None:
    transformers = pytest.importorskip("transformers")
    rope_utils = pytest.importorskip("transformers.modeling_rope_utils")
    yarn = YarnScaling(factor=factor, original_max_position_embeddings=original)
    ours = replace(model_graph("tied").config, head_dim=128, rope_theta=theta, rope_scaling=yarn)
    parameters = {
        "rope_type": "yarn",
        "rope_theta": theta,
        "factor": factor,
        "original_max_position_embeddings": original,
    }
    theirs = transformers.Qwen3Config(head_dim=128, rope_parameters=parameters)
    frequencies_R, attention_factor = rope_utils.ROPE_INIT_FUNCTIONS["yarn"](theirs, torch.device("cpu"))
    assert torch.equal(inverse_frequencies(ours), frequencies_R)
    assert yarn.attention_factor == pytest.approx(attention_factor, rel=1e-12)
