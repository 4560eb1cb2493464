"""Qwen3 as a small torch module for ``torch.export``: one token or many, with the KV cache in buffers.

Attention and its cache are ExecuTorch's own operators (``llama::update_cache``, ``llama::custom_sdpa``). A portable
program uses operators that every runtime has: attention over the whole cache with a mask. Weights have the codes and
scales of the quantized graph, wrapped in torchao tensors. XNNPACK's partitioner recognizes how these are dequantized
and takes the codes unchanged. A mixture of experts, router included, is one operator (``llama::quantized_moe_ffn``).
"""

# T tokens  D hidden  N heads  K kv heads  H head_dim  R rotated pairs  V vocabulary  E experts  Y bytes of an expert

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph, Kind, Role, Weight, module_name
from qwen3_export.quantizers.packing.executorch import pack_embedding_int4
from qwen3_export.quantizers.packing.torchao import pack_universal, universal_header
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.rope import rotation
from qwen3_export.targets.executorch.recipes import ExecutorchFormat, integers_of

__all__ = ["ExportModule"]

ENCODED_WEIGHTS = 1 << 22
INT4_LOW, INT4_HIGH, INT8_LOW, INT8_HIGH = -8, 7, -128, 127

Formats = Mapping[str, ExecutorchFormat]


class ExportModule(nn.Module):
    """``forward(tokens [1, T], input_pos [1])`` gives the logits of the last token, [1, V].

    ``is_portable`` avoids operators that a runtime may have been built without.
    """

    def __init__(self, graph: Graph, formats: Formats, *, max_context_len: int, is_portable: bool = False) -> None:
        super().__init__()
        config = graph.config
        self.max_context_len = max_context_len
        self.embed_tokens = _embedding(graph[Role(Kind.EMBED_TOKENS)], formats, is_portable=is_portable)
        make_attention = _PortableAttention if is_portable else _Attention
        self.layers = nn.ModuleList(
            _Layer(graph, formats, layer, make_attention(config, max_context_len))
            for layer in range(config.num_hidden_layers)
        )
        self.norm = _Norm(graph, Role(Kind.NORM))
        self.lm_head = _linear(graph[Role(Kind.LM_HEAD)], formats)
        turn = rotation(config, start=0, count=max_context_len)
        self.register_buffer("cos", turn.cos.contiguous())
        self.register_buffer("sin", turn.sin.contiguous())

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        start: Any = input_pos[0].item()  # a symbol during tracing
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


class _Attention(nn.Module):
    """The KV cache and attention over it: q [1, T, N, H], k and v [1, T, K, H] to [1, T, N, H]."""

    k_cache: Tensor
    v_cache: Tensor

    def __init__(self, config: Qwen3Config, max_context_len: int) -> None:
        super().__init__()
        shape = (1, max_context_len, config.num_key_value_heads, config.head_dim)
        self.scale = config.head_dim**-0.5
        self.register_buffer("k_cache", torch.zeros(shape))
        self.register_buffer("v_cache", torch.zeros(shape))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: Any) -> Tensor:
        torch.ops.llama.update_cache(k, self.k_cache, start)
        torch.ops.llama.update_cache(v, self.v_cache, start)
        context: Tensor = torch.ops.llama.custom_sdpa(q, self.k_cache, self.v_cache, start, None, 0.0, True, self.scale)
        return context


class _PortableAttention(_Attention):
    """The same with operators that every runtime has. Query heads that share a key head are stacked."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, start: Any) -> Tensor:
        _, length, kv_heads, head_dim = self.k_cache.shape
        positions_T = torch.arange(q.shape[1]) + start
        self.k_cache.index_copy_(1, positions_T, k)
        self.v_cache.index_copy_(1, positions_T, v)
        is_hidden_T1L = torch.arange(length) > positions_T[:, None, None]
        q_TKGH = q.view(q.shape[1], kv_heads, -1, head_dim)
        scores_KTGL = torch.einsum("tkgh,lkh->ktgl", q_TKGH, self.k_cache[0]) * self.scale
        shares_KTGL = torch.softmax(scores_KTGL.masked_fill(is_hidden_T1L, float("-inf")), dim=-1)
        return torch.einsum("ktgl,lkh->tkgh", shares_KTGL, self.v_cache[0]).reshape(q.shape)


class _Layer(nn.Module):
    input_layernorm: nn.Module
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    o_proj: nn.Module
    post_attention_layernorm: nn.Module

    def __init__(self, graph: Graph, formats: Formats, layer: int, attention: _Attention) -> None:
        super().__init__()
        self.config: Qwen3Config = graph.config
        self.attention = attention
        for kind in (Kind.INPUT_LAYERNORM, Kind.Q_NORM, Kind.K_NORM, Kind.POST_ATTENTION_LAYERNORM):
            setattr(self, kind.value, _Norm(graph, Role(kind, layer)))
        for kind in ATTENTION:
            setattr(self, kind.value, _linear(graph[Role(kind, layer)], formats))
        is_sparse = graph.config.is_sparse_layer(layer)
        self.mlp: nn.Module = _Experts(graph, formats, layer) if is_sparse else _Gated(graph, formats, layer)

    def forward(self, x: Tensor, start: Any, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
        count, head_dim = x.shape[1], self.config.head_dim
        h = self.input_layernorm(x)
        q = self.q_norm(self.q_proj(h).view(1, count, -1, head_dim))
        k = self.k_norm(self.k_proj(h).view(1, count, -1, head_dim))
        v = self.v_proj(h).view(1, count, -1, head_dim)
        q, k = _rotate(q, cos_T1R, sin_T1R), _rotate(k, cos_T1R, sin_T1R)
        x = x + self.o_proj(self.attention(q, k, v, start).reshape(1, count, -1))
        mixed: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return mixed


ATTENTION = (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ, Kind.O_PROJ)


class _Gated(nn.Module):
    def __init__(self, graph: Graph, formats: Formats, layer: int) -> None:
        super().__init__()
        self.gate_proj = _linear(graph[Role(Kind.GATE_PROJ, layer)], formats)
        self.up_proj = _linear(graph[Role(Kind.UP_PROJ, layer)], formats)
        self.down_proj = _linear(graph[Role(Kind.DOWN_PROJ, layer)], formats)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return added


class _Experts(nn.Module):
    """Router and experts; gate_proj is stored above up_proj, and each expert's bytes are one row."""

    def __init__(self, graph: Graph, formats: Formats, layer: int) -> None:
        super().__init__()
        self.config: Qwen3Config = graph.config
        integers = integers_of(formats[module_name(Role(Kind.GATE_PROJ, layer, 0))])
        assert integers is not None
        assert integers.group_size is not None
        self.num_bits, self.group_size = integers.num_bits, integers.group_size
        self.register_buffer("router", torch.from_numpy(graph[Role(Kind.ROUTER, layer)].read().copy()))
        self.register_buffer("no_bias", torch.empty(0))
        self.register_buffer("gate_up_EY", self._packed(graph, layer, (Kind.GATE_PROJ, Kind.UP_PROJ)))
        self.register_buffer("down_EY", self._packed(graph, layer, (Kind.DOWN_PROJ,)))

    def forward(self, x: Tensor) -> Tensor:
        config = self.config
        added: Tensor = torch.ops.llama.quantized_moe_ffn(
            x.view(-1, config.hidden_size),
            self.router,
            self.no_bias,
            self.gate_up_EY,
            self.down_EY,
            config.num_experts_per_tok,
            config.num_experts,
            config.moe_intermediate_size,
            config.hidden_size,
            self.group_size,
            self.num_bits,
            "softmax",
            1.0,
        )
        return added.view(x.shape)

    def _packed(self, graph: Graph, layer: int, kinds: Sequence[Kind]) -> Tensor:
        header = universal_header(self.num_bits)
        experts = []
        for expert in range(self.config.num_experts):
            parts = [header]
            for kind in kinds:
                weight = graph[Role(kind, layer, expert)]
                assert isinstance(weight, QuantizedWeight)
                codes_OI, params = weight.encode()
                parts.append(pack_universal(codes_OI, params, num_bits=self.num_bits).reshape(-1))
            experts.append(np.concatenate(parts))
        return torch.from_numpy(np.stack(experts))


class _Norm(nn.Module):
    def __init__(self, graph: Graph, role: Role) -> None:
        super().__init__()
        self.weight = _frozen(torch.from_numpy(graph[role].read().copy()))
        self.eps = graph.config.rms_norm_eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class _ByteEmbedding(nn.Module):
    """Rows of int8 codes with one scale each."""

    codes: Tensor
    scale: Tensor

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        codes_VD, scale_VG = _encode(weight)
        self.register_buffer("codes", torch.from_numpy(codes_VD))
        self.register_buffer("scale", torch.from_numpy(scale_VG[:, 0].copy()))

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized_decomposed.embedding_byte(
            self.codes, self.scale, None, INT8_LOW, INT8_HIGH, tokens
        )
        return found


class _PortableByteEmbedding(_ByteEmbedding):
    """The same with operators that every runtime has."""

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.codes).float() * self.scale[tokens][..., None]


class _NibbleEmbedding(nn.Module):
    """Rows of packed int4 codes with one scale per group."""

    def __init__(self, weight: QuantizedWeight) -> None:
        super().__init__()
        codes_VD, scale_VG = _encode(weight)
        self.register_buffer("codes", torch.from_numpy(pack_embedding_int4(codes_VD)))
        self.register_buffer("scale", torch.from_numpy(scale_VG))

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = torch.ops.quantized_decomposed.embedding_4bit(
            self.codes, self.scale, None, INT4_LOW, INT4_HIGH, tokens
        )
        return found


def _embedding(weight: Weight, formats: Formats, *, is_portable: bool) -> nn.Module:
    integers = integers_of(formats[weight.name])
    if integers is None:
        values = torch.from_numpy(weight.read().copy())
        rows, columns = weight.shape
        return nn.Embedding(rows, columns, _weight=values, _freeze=True)
    assert isinstance(weight, QuantizedWeight)
    if integers.num_bits == 4:
        return _NibbleEmbedding(weight)
    return _PortableByteEmbedding(weight) if is_portable else _ByteEmbedding(weight)


def _linear(weight: Weight, formats: Formats) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    integers = integers_of(formats[weight.name])
    if integers is None:
        linear.weight = _frozen(torch.from_numpy(weight.read().copy()))
        return linear
    from torchao.quantization import IntxUnpackedToInt8Tensor

    assert isinstance(weight, QuantizedWeight)
    codes_OI, scale_OG = _encode(weight)
    linear.weight = _frozen(
        IntxUnpackedToInt8Tensor(
            qdata=torch.from_numpy(codes_OI),
            scale=torch.from_numpy(scale_OG),
            zero_point=torch.zeros(scale_OG.shape, dtype=torch.int8),
            target_dtype=getattr(torch, f"int{integers.num_bits}"),
            block_size=(1, integers.group_size or columns),
            dtype=torch.float32,
            activation_quantization="int8_asym_per_token",
        )
    )
    return linear


def _encode(weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales, some rows at a time: a head in fp32 would be larger than all codes of a small model."""
    rows, columns = weight.shape
    step = max(1, ENCODED_WEIGHTS // columns)
    codes_OI, scales = np.empty((rows, columns), np.int8), []
    for start in range(0, rows, step):
        block = slice(start, min(start + step, rows))
        codes_OI[block], params = weight.encode(block)
        scales.append(params.scale_RG)
    return codes_OI, np.concatenate(scales)


def _rotate(x: Tensor, cos_T1R: Tensor, sin_T1R: Tensor) -> Tensor:
    pairs = x.shape[-1] // 2
    first, second = x[..., :pairs], x[..., pairs:]
    return torch.cat((first * cos_T1R - second * sin_T1R, second * cos_T1R + first * sin_T1R), dim=-1)


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
