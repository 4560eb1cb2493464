"""Rounding of activations to int8 as runtimes do it: one scale for each token, or for each block of a token.

With W8A8 (and XNNPACK's 8da4w) a runtime rounds the input of each linear weight to int8 before it multiplies, with a
scale computed from the token itself. The reference, with its activations rounded in the same way, is a model of that
arithmetic. So the cost of rounding activations is measured separately from the cost of rounding weights.

    round_activations = Int8Activations(symmetric=False).round       # what XNNPACK does
    forward(quantized_graph, sequences, round_activations=round_activations)

Sources: torchao's and ExecuTorch's ``choose_qparams_per_token_asymmetric`` (XNNPACK's qd8 computes the same); ONNX
Runtime's MatMulNBits at accuracy level 4 rounds symmetric blocks as long as the weight's.

Shapes: # T tokens  I in_features  G blocks a token
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Weight
from qwen3_export.quantizers.weights.protocols import code_format

__all__ = ["Int8Activations", "round_asymmetric", "round_symmetric"]

_LOW, _HIGH = -128, 127
_LEAST_SCALE = torch.finfo(torch.float32).eps
"""The smallest scale, so that a token of zeros can be divided by it; torchao and ExecuTorch use the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Activations:
    """How a runtime rounds the inputs of quantized weights; with ``block_size`` None each token has one scale."""

    symmetric: bool = True
    block_size: int | None = None

    def __post_init__(self) -> None:
        if self.block_size is not None and self.block_size < 1:
            raise QuantizationError(f"`block_size` {self.block_size} of activations is not positive")

    def round(self, x_TI: Tensor, weight: Weight) -> Tensor:
        """The input of a linear weight as the runtime sees it; unchanged where the weight is stored as floats.

        Each token is rounded by itself. This method can be passed to ``reference.forward`` as ``round_activations``.
        """
        if code_format(weight) is None:
            return x_TI
        if self.block_size is None:
            return self._round(x_TI)
        if x_TI.shape[-1] % self.block_size:
            raise QuantizationError(
                f"{weight.name}: {x_TI.shape[-1]} activations are not a multiple of `block_size` {self.block_size}"
            )
        return self._round(x_TI.reshape(*x_TI.shape[:-1], -1, self.block_size)).flatten(-2)

    def _round(self, x: Tensor) -> Tensor:
        return round_symmetric(x) if self.symmetric else round_asymmetric(x)


def round_symmetric(x: Tensor) -> Tensor:
    """Round the last dimension to int8 and back: the largest magnitude becomes 127, without a zero point."""
    scale = (x.abs().amax(dim=-1, keepdim=True) / _HIGH).clamp_min(_LEAST_SCALE)
    return torch.round(x / scale).clamp_(_LOW, _HIGH) * scale


def round_asymmetric(x: Tensor) -> Tensor:
    """Round the last dimension to int8 and back: its range, widened to contain zero, spans the 256 codes.

    The zero point must be rounded too, which moves the range. It is computed from the end of the range where that
    leaves the smaller error, as in the sources above.
    """
    low = x.amin(dim=-1, keepdim=True).clamp_max(0)
    high = x.amax(dim=-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (_HIGH - _LOW)).clamp_min(_LEAST_SCALE)
    low_steps, high_steps = low / scale, high / scale
    from_low = (_LOW + low_steps) + (_HIGH + high_steps) > 0
    zero_point = torch.where(from_low, _LOW - low_steps, _HIGH - high_steps).clamp_(_LOW, _HIGH).round_()
    codes = (torch.round(x / scale) + zero_point).clamp_(_LOW, _HIGH)
    return (codes - zero_point) * scale
