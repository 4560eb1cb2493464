"""Round activations as llama.cpp's CPU matmul does, to the weight's ``vec_dot_type``.

A quantized weight is multiplied with int8 activations, an F16 or BF16 weight with activations of its own type. The
reference with activations rounded in the same way models the runtime's arithmetic. So the noise floor of *this* model
on *these* texts is measured, not guessed.

Source: ``type_traits_cpu`` and ``ggml_compute_forward_mul_mat`` of ggml-cpu.c; ``quantize_row_q8_0`` and
``quantize_row_q8_K`` of ggml's quants.c. Q8_1 is Q8_0 plus the sum of each block in float16. The rounding of that sum
is not modelled: its effect is two orders of magnitude smaller than that of int8 rounding.
"""

# T tokens  I in_features  G blocks a row

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from qwen3_export.graph import Weight

__all__ = ["round_activations", "round_q8_0", "round_q8_k"]


def round_activations(x_TI: Tensor, weight: Weight) -> Tensor:
    """The input of a linear weight as llama.cpp's CPU backend sees it; ``weight.format`` decides."""
    return ROUNDING[weight.format](x_TI)


def round_q8_0(x_TI: Tensor) -> Tensor:
    """Blocks of 32: codes are x·127/largest magnitude, rounded; the scale is stored in float16."""
    x_TGI = x_TI.reshape(*x_TI.shape[:-1], -1, 32)
    scale = x_TGI.abs().amax(-1, keepdim=True) / 127
    codes = torch.round(x_TGI * _inverse(scale))
    return (codes * scale.half().float()).flatten(-2)


def round_q8_k(x_TI: Tensor) -> Tensor:
    """Blocks of 256 with a float32 scale; the value of largest magnitude becomes -127 exactly."""
    x_TGI = x_TI.reshape(*x_TI.shape[:-1], -1, 256)
    largest = x_TGI.gather(-1, x_TGI.abs().argmax(-1, keepdim=True))
    inverse_scale = -127 * _inverse(largest)
    codes = torch.round(x_TGI * inverse_scale).clamp_(max=127)
    return (codes * _inverse(inverse_scale)).flatten(-2)


def _inverse(x: Tensor) -> Tensor:
    return torch.where(x == 0, 0.0, 1 / x)


# By the weight's format: the type that llama.cpp rounds activations to.
ROUNDING: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "F32": lambda x_TI: x_TI,
        "F16": lambda x_TI: x_TI.half().float(),
        "BF16": lambda x_TI: x_TI.bfloat16().float(),
        **dict.fromkeys(("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"), round_q8_0),
        **dict.fromkeys(("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"), round_q8_k),
    }
)
