"""Int8 activations: equal to torch's own per-token operators, and to naive arithmetic, through the reference too."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.ao.quantization.fx import _decomposed  # registers torch.ops.quantized_decomposed

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.activations import Int8Activations, round_asymmetric, round_symmetric
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F32
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.reference.model import logits

OPERATORS = torch.ops.quantized_decomposed


def some_activations(seed: int = 0) -> Tensor:
    """Tokens of very different size, all-positive and all-negative ones, and a token of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 96, generator=generator) * torch.logspace(-3, 3, 64)[:, None]
    x[5], x[6], x[7] = x[5].abs(), -x[6].abs(), 0
    x[8, 3] = 500.0
    return x


def steps_apart(ours: Tensor, theirs: Tensor, scale: Tensor) -> Tensor:
    return ((ours - theirs) / scale).abs().round()


def test_asymmetric_equals_torch() -> None:
    assert _decomposed is not None
    x = some_activations()
    scale, zero = OPERATORS.choose_qparams_per_token_asymmetric(x, torch.int8)
    codes = OPERATORS.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    theirs = OPERATORS.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)
    apart = steps_apart(round_asymmetric(x), theirs, scale.float())
    # Values right between two codes may fall either way: torch adds the zero point before it rounds.
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3


def test_symmetric_equals_torch() -> None:
    x = some_activations()
    scale, zero = OPERATORS.choose_qparams_per_token(x, torch.int8)
    codes = OPERATORS.quantize_per_token(x, scale, zero, -128, 127, torch.int8)
    theirs = OPERATORS.dequantize_per_token(codes, scale, zero, -128, 127, torch.int8, torch.float32)
    apart = steps_apart(round_symmetric(x), theirs, scale.float())
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 1e-3


@pytest.mark.parametrize("symmetric", [True, False])
def test_error_is_at_most_half_a_step_and_tokens_are_apart(symmetric: bool) -> None:
    x = some_activations()
    rounding = round_symmetric if symmetric else round_asymmetric
    rounded = rounding(x)
    span = 2 * x.abs().amax(1) / 254 if symmetric else (x.amax(1).clamp_min(0) - x.amin(1).clamp_max(0)) / 255
    # The asymmetric zero point is rounded too, which can clip the far end by half a step more.
    assert ((rounded - x).abs().amax(1) <= span * (0.501 if symmetric else 1.001) + 1e-9).all()
    assert not rounded[7].any()
    torch.testing.assert_close(rounding(x[10:11]), rounded[10:11], rtol=0, atol=0)
    assert all(len(token.unique()) <= 256 for token in rounded)


def test_asymmetric_is_finer_for_one_sided_tokens() -> None:
    x = some_activations()[5:6]
    assert (round_asymmetric(x) - x).norm() < 0.7 * (round_symmetric(x) - x).norm()


def test_blocks_round_by_themselves(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    role = Role(Kind.Q_PROJ, 0)
    weight = round_graph(graph, {graph[role].name: AffineFormat(num_bits=8)})[role]
    x = some_activations()
    in_blocks = Int8Activations(block_size=32).round(x, weight)
    for first in (0, 32, 64):
        torch.testing.assert_close(in_blocks[:, first : first + 32], round_symmetric(x[:, first : first + 32]))
    assert (in_blocks - x).norm() < (Int8Activations().round(x, weight) - x).norm()
    with pytest.raises(QuantizationError, match="q_proj: 96 activations are not a multiple of `block_size` 64"):
        Int8Activations(block_size=64).round(x, weight)
    with pytest.raises(QuantizationError):
        Int8Activations(block_size=0)
    assert Int8Activations().round(x, graph[role]) is x


def test_what_is_multiplied_as_floats_is_not_rounded(model_graph: Callable[[str], Graph]) -> None:
    """Targets store a router as floats, in a class that can hold codes."""
    graph, x = model_graph("moe"), some_activations()
    role = Role(Kind.ROUTER, 0)
    as_floats = round_graph(graph, {graph[role].name: F32})[role]
    assert isinstance(as_floats, QuantizedWeight)
    assert Int8Activations(symmetric=False).round(x, as_floats) is x


@pytest.mark.parametrize("symmetric", [True, False])
def test_w8a8_through_the_reference(symmetric: bool, model_graph: Callable[[str], Graph]) -> None:
    graph, tokens = model_graph("tied"), torch.arange(50, 74)
    exact = logits(graph, tokens)
    eight_bits = AffineFormat(num_bits=8, search="range")  # quick: weights are rounded whenever they are read
    quantized = round_graph(graph, {weight.name: eight_bits for weight in graph if len(weight.shape) == 2})
    activations = Int8Activations(symmetric=symmetric)
    assert torch.equal(logits(graph, tokens, round_activations=activations.round), exact)
    weights_only = logits(quantized, tokens)
    both = logits(quantized, tokens, round_activations=activations.round)
    assert not torch.equal(both, weights_only)
    assert (both - exact).norm() < 0.2 * exact.norm()
    # One token at a time gives what all of them give at once: scales belong to the token.
    first = logits(quantized, tokens[:5], round_activations=activations.round)
    np.testing.assert_allclose(first.numpy(), both[:5].numpy(), atol=2e-3)
