"""One Qwen3 layer as pure functions in fp32.

A layer has two halves, and each half has two steps. The cuts are where calibration needs to look at the inputs of
linear weights:

    h = rms_norm(x, input_layernorm)               the input of q, k and v
    c = attend(*project_heads(config, weights, h))  the input of o
    x = x + o_proj(c)
    h = rms_norm(x, post_attention_layernorm)      the input of gate and up, and of the router
    g = gated(weights, h)                          the input of down
    x = x + down_proj(g)                           or the sum over the experts that the router chose

q_norm and k_norm are RMSNorm over head_dim, before RoPE, with one weight vector per layer for all heads. Query head n
reads key head n // heads_per_kv.

Shapes: T tokens, S tokens seen so far (T and those before), D hidden, N heads, K kv heads, G heads per kv head, H
head_dim, B a block of queries, I intermediate, E experts, A experts active per token, P = tokens routed to one expert.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.config import Qwen3Config
from qwen3_export.reference.weights import AttentionWeights, GatedWeights, Linear
from qwen3_export.rope import rotate, rotation

__all__ = ["KVCache", "Routing", "attend", "gated", "project_heads", "rms_norm", "route"]

# Attention scores held at once (16 MB of fp32); longer sequences are computed in smaller blocks of queries.
MAX_SCORES = 1 << 22

# The most queries in a block, so that scores stay in the processor's cache and fewer unseen keys are multiplied.
MAX_QUERIES = 128


@dataclass(slots=True)
class KVCache:
    """The rotated keys and the values of one sequence in each layer, [S, K, H].

    This is the only object here that is changed in place: running a layer appends to it.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """The number of tokens that have passed through the whole model."""
        return min((self.length_in(layer) for layer in self.keys), default=0)

    def length_in(self, layer: int) -> int:
        """The number of tokens that have passed through one layer: the position of its next token."""
        return self.keys[layer].shape[0] if layer in self.keys else 0

    def extend(self, layer: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        """Append new tokens to a layer; returns all its keys and values, [S, K, H] each."""
        if layer in self.keys:
            k_TKH = torch.cat((self.keys[layer], k_TKH))
            v_TKH = torch.cat((self.values[layer], v_TKH))
        self.keys[layer], self.values[layer] = k_TKH, v_TKH
        return k_TKH, v_TKH


@dataclass(frozen=True, slots=True, kw_only=True)
class Routing:
    """The experts of each token, best first, and their shares in the result."""

    experts: Tensor  # [T, A] int64
    shares: Tensor  # [T, A]

    def tokens_of(self, expert: int) -> tuple[Tensor, Tensor]:
        """The tokens that are sent to one expert, [P], and its share in each, [P]."""
        tokens_P, slots_P = torch.where(self.experts == expert)
        return tokens_P, self.shares[tokens_P, slots_P]


def rms_norm(x: Tensor, weight: Tensor, *, eps: float) -> Tensor:
    """Scale ``x`` so that the root mean square of its last axis is one, then multiply by ``weight``."""
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * weight


def project_heads(
    config: Qwen3Config, weights: AttentionWeights, h_TD: Tensor, *, start: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [T, N, H], keys and values [T, K, H]. Queries and keys are normed, and rotated from ``start`` on."""
    tokens = h_TD.shape[0]
    turn = rotation(config, start=start, count=tokens)
    q_TNH = weights.q_proj(h_TD).view(tokens, -1, config.head_dim)
    k_TKH = weights.k_proj(h_TD).view(tokens, -1, config.head_dim)
    v_TKH = weights.v_proj(h_TD).view(tokens, -1, config.head_dim)
    q_TNH = rotate(rms_norm(q_TNH, weights.q_norm, eps=config.rms_norm_eps), turn)
    k_TKH = rotate(rms_norm(k_TKH, weights.k_norm, eps=config.rms_norm_eps), turn)
    return q_TNH, k_TKH, v_TKH


def attend(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor) -> Tensor:
    """Causal attention of the last T of S tokens, [T, N * H]: the input of o_proj."""
    tokens, heads, head_dim = q_TNH.shape
    seen, kv_heads, _ = k_SKH.shape
    q_KGTH = q_TNH.reshape(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    k_KSH, v_KSH = k_SKH.transpose(0, 1), v_SKH.transpose(0, 1)
    block = min(MAX_QUERIES, max(1, MAX_SCORES // (heads * seen)))
    context = torch.empty(tokens, heads * head_dim)
    for first in range(0, tokens, block):
        last = min(first + block, tokens)
        visible = seen - tokens + last
        context[first:last] = _attend_block(q_KGTH[:, :, first:last], k_KSH[:, :visible], v_KSH[:, :visible])
    return context


def gated(weights: GatedWeights, h_TD: Tensor) -> Tensor:
    """silu(gate_proj(h)) * up_proj(h), [T, I]: the input of down_proj."""
    return functional.silu(weights.gate_proj(h_TD)) * weights.up_proj(h_TD)


def route(config: Qwen3Config, router: Linear, h_TD: Tensor) -> Routing:
    """Choose experts: softmax over all, then the best few, scaled to sum to one if ``norm_topk_prob``."""
    probabilities_TE = torch.softmax(router(h_TD), dim=-1)
    shares_TA, experts_TA = torch.topk(probabilities_TE, config.num_experts_per_tok, dim=-1)
    if config.norm_topk_prob:
        shares_TA = shares_TA / shares_TA.sum(dim=-1, keepdim=True)
    return Routing(experts=experts_TA, shares=shares_TA)


def _attend_block(q_KGBH: Tensor, k_KSH: Tensor, v_KSH: Tensor) -> Tensor:
    """Attention of B queries; the last one sees all S keys, the one before S - 1, and so on; [B, N * H].

    The G query heads that share a key head are stacked, so keys are never repeated.
    """
    kv_heads, group, block, head_dim = q_KGBH.shape
    seen = k_KSH.shape[1]
    scores = q_KGBH.reshape(kv_heads, group * block, head_dim) @ k_KSH.transpose(1, 2)
    scores_KGBS = scores.mul_(head_dim**-0.5).view(kv_heads, group, block, seen)
    hidden_BS = torch.ones(block, seen, dtype=torch.bool).triu(seen - block + 1)
    shares = torch.softmax(scores_KGBS.masked_fill_(hidden_BS, float("-inf")), dim=-1)
    context = shares.view(kv_heads, group * block, seen) @ v_KSH
    return context.view(kv_heads, group, block, head_dim).permute(2, 0, 1, 3).reshape(block, -1)
