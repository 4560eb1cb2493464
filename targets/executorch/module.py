"""Qwen3 as a small torch module, for ``torch.export``: one token or many, with the KV cache in buffers.

Attention and its cache are ExecuTorch's own operators (``llama::update_cache``, ``llama::custom_sdpa``). Weights are
what the quantized graph holds: codes and scales, wrapped as torchao's tensors, whose dequantizing XNNPACK's partitioner
recognizes and takes as they are.
"""

# T tokens  D hidden  N heads  K kv heads  H head_dim  R rotated pairs  V vocabulary

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.coded import CodedWeight
from qwen3_export.quantizers.packing.executorch import pack_embedding_int4
from qwen3_export.rope import rotation

__all__ = ["ExportModule"]

INT4_LOW, INT4_HIGH, INT8_LOW, INT8_HIGH = -8, 7, -128, 127

Formats = Mapping[str, str | AffineFormat]


class ExportModule(nn.Module):
    """``forward(tokens [1, T], input_pos [1])`` gives the logits of the last token, [1, V]."""

    def __init__(self, graph: Graph, formats: Formats, *, max_context_len: int) -> None:
        super().__init__()
        config = graph.config
        self.max_context_len = max_context_len
        self.embed_tokens = _embedding(graph[Role(Kind.EMBED_TOKENS)], formats)
        self.layers = nn.ModuleList(
            _Layer(graph, formats, layer, max_context_len) for layer in range(config.num_hidden_layers)
        )
        self.norm = _Norm(graph, Role(Kind.NORM))
        self.lm_head = _linear(graph[Role(Kind.LM_HEAD)], formats)
        turn = rotation(config, start=0, count=max_context_len)
        self.register_buffer("cos", turn.cos.contiguous())
        self.register_buffer("sin", turn.sin.contiguous())

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        start: Any = input_pos[0].item()  # a symbol while this is traced
        count = tokens.shape[1]
        for is_so in (start >= 0, start < self.max_context_len, start + count <= self.max_context_len):
            torch._check(is_so)  # type: ignore[no-untyped-call]
        cos_T1R = self.cos.narrow(0, start, count)[:, None]  # type: ignore[operator]
        sin_T1R = self.sin.narrow(0, start, count)[:, None]  # type: ignore[operator]
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, start, cos_T1R, sin_T1R)
        last: Tensor = self.lm_head(self.norm(x[:, -1]))
        return last


class _Layer(nn.Module):
    input_layernorm: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    o_proj: nn.Module
    post_attention_layernorm: nn.Module
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def __init__(self, graph: Graph, formats: Formats, layer: int, max_context_len: int) -> None:
        super().__init__()
        self.config: Qwen3Config = graph.config
        for kind in (Kind.INPUT_LAYERNORM, Kind.Q_NORM, Kind.K_NORM, Kind.POST_ATTENTION_LAYERNORM):
            setattr(self, kind.value, _Norm(graph, Role(kind, layer)))
        for kind in MATRICES:
            setattr(self, kind.value, _linear(graph[Role(kind, layer)], formats))
        shape = (1, max_context_len, graph.config.num_key_value_heads, graph.config.head_dim)
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def forward(self, x: Tensor, start: Any, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        count, head_dim = x.shape[1], self.config.head_dim
        h = self.input_layernorm(x)
        q = self.q_norm(self.q_proj(h).view(1, count, -1, head_dim))
        k = self.k_norm(self.k_proj(h).view(1, count, -1, head_dim))
        v = self.v_proj(h).view(1, count, -1, head_dim)
        q, k = _rotate(q, cos_T1R, sin_T1R), _rotate(k, cos_T1R, sin_T1R)
        torch.ops.llama.update_cache(k, self.k_cache, start)
        torch.ops.llama.update_cache(v, self.v_cache, start)
        scale = head_dim**-0.5
        context = torch.ops.llama.custom_sdpa(q, self.k_cache, self.v_cache, start, None, 0.0, True, scale)
        x = x + self.o_proj(context.reshape(1, count, -1))
        h = self.post_attention_layernorm(x)
        added: Tensor = self.down_proj(functional.silu(self.gate_proj(h)) * self.up_proj(h))
        return x + added


MATRICES = (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ, Kind.O_PROJ, Kind.GATE_PROJ, Kind.UP_PROJ, Kind.DOWN_PROJ)


class _Norm(nn.Module):
    def __init__(self, graph: Graph, role: Role) -> None:
        super().__init__()
        self.weight = _frozen(torch.from_numpy(graph[role].read().copy()))
        self.eps = graph.config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class _ByteEmbedding(nn.Module):
    """Rows of int8 codes with a scale each."""

    def __init__(self, weight: CodedWeight) -> None:
        super().__init__()
        codes_VD, params = weight.encode()
        self.register_buffer("codes", torch.from_numpy(codes_VD))
        self.register_buffer("scale", torch.from_numpy(params.scale_RG[:, 0].copy()))

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized_decomposed.embedding_byte(
            self.codes, self.scale, None, INT8_LOW, INT8_HIGH, tokens
        )
        return found


class _NibbleEmbedding(nn.Module):
    """Rows of packed int4 codes with a scale for each group."""

    def __init__(self, weight: CodedWeight) -> None:
        super().__init__()
        codes_VD, params = weight.encode()
        self.register_buffer("codes", torch.from_numpy(pack_embedding_int4(codes_VD)))
        self.register_buffer("scale", torch.from_numpy(params.scale_RG.copy()))

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized_decomposed.embedding_4bit(
            self.codes, self.scale, None, INT4_LOW, INT4_HIGH, tokens
        )
        return found


def _embedding(weight: Weight, formats: Formats) -> nn.Module:
    number_format = formats[weight.name]
    if not isinstance(number_format, AffineFormat):
        values = torch.from_numpy(weight.read().copy())
        rows, columns = weight.shape
        return nn.Embedding(rows, columns, _weight=values, _freeze=True)
    assert isinstance(weight, CodedWeight)
    return _ByteEmbedding(weight) if number_format.num_bits == 8 else _NibbleEmbedding(weight)


def _linear(weight: Weight, formats: Formats) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    number_format = formats[weight.name]
    if not isinstance(number_format, AffineFormat):
        linear.weight = _frozen(torch.from_numpy(weight.read().copy()))
        return linear
    from torchao.quantization import IntxUnpackedToInt8Tensor

    assert isinstance(weight, CodedWeight)
    codes_OI, params = weight.encode()
    linear.weight = _frozen(
        IntxUnpackedToInt8Tensor(
            qdata=torch.from_numpy(codes_OI),
            scale=torch.from_numpy(params.scale_RG),
            zero_point=torch.zeros(params.scale_RG.shape, dtype=torch.int8),
            target_dtype=getattr(torch, f"int{number_format.num_bits}"),
            block_size=(1, number_format.group_size or columns),
            dtype=torch.float32,
            activation_quantization="int8_asym_per_token",
        )
    )
    return linear


def _rotate(x: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    pairs = x.shape[-1] // 2
    first, second = x[..., :pairs], x[..., pairs:]
    return torch.cat((first * cos_T1R - second * sin_T1R, second * cos_T1R + first * sin_T1R), dim=-1)


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
