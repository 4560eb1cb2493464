"""Rotary position embedding as Qwen3 has it: half-split pairs, optionally stretched by YaRN.

Dimensions i and i + head_dim/2 form a pair (not 2i and 2i + 1, the "interleaved" kind), and pair i of a head
at position p turns by the angle p * theta^(-2i/head_dim).  YaRN (arXiv 2309.00071, section 3.2) divides the
angle of slow pairs by ``factor``, leaves fast ones alone and blends between; the blend runs over pair indices
``low`` to ``high``, rounded outwards to whole numbers, as transformers and llama.cpp both do.  Its attention
factor multiplies cos and sin, so that scores grow by its square.

Everything is computed in fp32 and in the order of transformers, so that angles agree bit by bit: at position
40,000 one unit in the last place of a frequency of 1.0 is already an angle of 0.002.

Shapes: T tokens, N heads, H head_dim, R = H/2 rotated pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_export.config import Qwen3Config
from qwen3_export.yarn import YarnScaling

__all__ = ["Rotation", "inverse_frequencies", "rotate", "rotation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Cosine and sine of each pair's angle at some positions, the attention factor already multiplied in."""

    cos: Tensor  # [T, R]
    sin: Tensor  # [T, R]


def inverse_frequencies(config: Qwen3Config) -> Tensor:
    """Angle per position of each pair, [R], fp32."""
    wavelengths_R = config.rope_theta ** (
        torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    )
    if config.rope_scaling is None:
        return 1.0 / wavelengths_R
    kept_R = 1 - _interpolated_share(config, config.rope_scaling)
    stretched_R = 1.0 / (config.rope_scaling.factor * wavelengths_R)
    return stretched_R * (1 - kept_R) + (1.0 / wavelengths_R) * kept_R


def rotation(config: Qwen3Config, *, start: int, count: int) -> Rotation:
    """The rotation at positions ``start`` to ``start + count - 1``."""
    positions_T = torch.arange(start, start + count, dtype=torch.int64).float()
    angles_TR = positions_T[:, None] * inverse_frequencies(config)
    factor = config.rope_scaling.attention_factor if config.rope_scaling else 1.0
    return Rotation(cos=angles_TR.cos() * factor, sin=angles_TR.sin() * factor)


def rotate(x_TNH: Tensor, turn: Rotation) -> Tensor:
    """Every head of ``x`` turned by its token's angles, [T, N, H]."""
    cos_T1R, sin_T1R = turn.cos[:, None], turn.sin[:, None]
    first_TNR, second_TNR = x_TNH.chunk(2, dim=-1)
    return torch.cat((first_TNR * cos_T1R - second_TNR * sin_T1R, second_TNR * cos_T1R + first_TNR * sin_T1R), dim=-1)


def _interpolated_share(config: Qwen3Config, yarn: YarnScaling) -> Tensor:
    """How much of each pair's frequency is divided by ``factor``: 0 for fast pairs, 1 for slow ones, [R]."""
    low, high = (_pair_with_turns(config, yarn, beta) for beta in (yarn.beta_fast, yarn.beta_slow))
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.head_dim - 1)
    width = high - low if high != low else 0.001
    ramp_R = (torch.arange(config.head_dim // 2, dtype=torch.float32) - low) / width
    return ramp_R.clamp(0, 1)


def _pair_with_turns(config: Qwen3Config, yarn: YarnScaling, turns: float) -> float:
    """The (fractional) index of the pair that makes ``turns`` full turns within the original context."""
    wavelength = yarn.original_max_position_embeddings / (turns * 2 * math.pi)
    return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))
