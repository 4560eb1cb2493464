"""Experts as ExecuTorch's operator holds them: both ways, and multiplied with by the operator itself."""

# T tokens  D hidden  F intermediate  E experts  Y bytes of an expert

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.packing.torchao import (
    pack_universal,
    universal_block_bytes,
    universal_header,
    unpack_universal,
)


@settings(max_examples=20, deadline=None)
@given(
    num_bits=st.sampled_from([4, 8]),
    group_size=st.sampled_from([16, 32, 48]),
    blocks=st.integers(1, 4),
    groups=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_round_trip(num_bits: int, group_size: int, blocks: int, groups: int, seed: int) -> None:
    columns = group_size * groups
    values = np.random.default_rng(seed).standard_normal((8 * blocks, columns)).astype(np.float32)
    codes, params = AffineFormat(num_bits=num_bits, group_size=group_size).encode(values)
    packed_BY = pack_universal(codes, params, num_bits=num_bits)
    assert packed_BY.shape == (blocks, universal_block_bytes(columns, group_size, num_bits))
    found, found_params = unpack_universal(packed_BY, columns=columns, group_size=group_size, num_bits=num_bits)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(found_params.scale_RG, params.scale_RG)


@pytest.mark.parametrize("num_bits", [4, 8])
def test_executorch_multiplies_with_what_was_packed(num_bits: int) -> None:
    pytest.importorskip("executorch")
    import executorch.extension.llm.custom_ops.custom_ops  # noqa: F401 (registers the operator)

    tokens, hidden, inner, experts, active = 7, 64, 48, 5, 2
    number_format, random = AffineFormat(num_bits=num_bits, group_size=16), np.random.default_rng(0)

    def made(rows: int, columns: int) -> tuple[NDArray[np.uint8], torch.Tensor]:
        values = random.standard_normal((rows, columns)).astype(np.float32) / 8
        codes, params = number_format.encode(values)
        packed = pack_universal(codes, params, num_bits=num_bits).reshape(-1)
        return packed, torch.from_numpy(number_format.dequantize(codes, params))

    gates, ups = ([made(inner, hidden) for _ in range(experts)] for _ in range(2))
    downs, header = [made(hidden, inner) for _ in range(experts)], universal_header(num_bits)
    gate_up_EY = np.stack([np.concatenate([header, gate, up]) for (gate, _), (up, _) in zip(gates, ups, strict=True)])
    down_EY = np.stack([np.concatenate([header, down]) for down, _ in downs])
    x_TD, router_ED = torch.randn(tokens, hidden), torch.randn(experts, hidden)
    found = torch.ops.llama.quantized_moe_ffn(
        x_TD,
        router_ED,
        torch.empty(0),
        torch.from_numpy(gate_up_EY),
        torch.from_numpy(down_EY),
        active,
        experts,
        inner,
        hidden,
        16,
        num_bits,
        "softmax",
        1.0,
    )
    best = torch.softmax(x_TD @ router_ED.T, dim=-1).topk(active, dim=-1)
    share_TE = torch.zeros(tokens, experts).scatter(1, best.indices, best.values)
    share_TE /= share_TE.sum(dim=-1, keepdim=True)
    expected = torch.zeros_like(x_TD)
    for expert in range(experts):
        inner_TF = functional.silu(x_TD @ gates[expert][1].T) * (x_TD @ ups[expert][1].T)
        expected += share_TE[:, expert : expert + 1] * (inner_TF @ downs[expert][1].T)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_it_cannot_hold_is_refused() -> None:
    values = np.ones((8, 64), np.float32)
    for number_format, rows, told in [
        (AffineFormat(num_bits=4, group_size=32), 4, "a multiple of 8 rows"),
        (AffineFormat(num_bits=4, group_size=8), 8, "groups of a multiple of 16 columns"),
        (AffineFormat(num_bits=4, group_size=32, symmetric=False), 8, "zero point"),
    ]:
        codes, params = number_format.encode(np.linspace(-1, 2, values.size, dtype=np.float32).reshape(8, 64)[:rows])
        with pytest.raises(QuantizationError, match=told):
            pack_universal(codes, params, num_bits=4)
