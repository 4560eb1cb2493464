"""Qwen3 as an ONNX graph, declared node by node.

    input_ids ─ embed ─┬─ norm ─ q, k, v ─ head norms ─ GroupQueryAttention ─ o ─┬─ norm ─ gate, up ─ down ─ … ─ logits
                       └─────────────────────── residual ────────────────────────┘

The residual sum and the norm are one node (SkipSimplifiedLayerNormalization). Attention is another, with its KV cache,
causal mask and, in the genai flavour, RoPE. transformers.js passes position_ids, so there RoPE is a node of its own; it
runs in browsers and pads on the left, so ``embedding.py`` and ``padding.py`` stand in for what that would break.
Values that the reference can show are named after its sites (``site_names``).

Sources: onnxruntime's ContribOperators.md, and the schemas that it prints. On CPU, GroupQueryAttention takes prompts
padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Kind, Role, module_name
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.reference.probe import Place, Site
from qwen3_export.targets.onnx.builder import MICROSOFT, GraphBuilder
from qwen3_export.targets.onnx.embedding import gather_rows
from qwen3_export.targets.onnx.layout import (
    CODES,
    ROWS,
    SCALES,
    VALUES,
    ZERO_POINTS,
    DataPlan,
    experts_names,
    fused_name,
)
from qwen3_export.targets.onnx.names import COS_CACHE, SIN_CACHE, site_name
from qwen3_export.targets.onnx.padding import order_of_tokens

__all__ = ["IR_VERSION", "OPSET", "GraphOptions", "build_model"]

OPSET, IR_VERSION = 21, 10

# QMoE knows accuracy_level from onnxruntime 1.31 on. Without it, 1.23 to 1.30 (all that transformers.js has today) load
# the graph too: right with 4 bits, wrong with 8, where the attribute keeps them from it.
OLD_EXPERT_BITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphOptions:
    """``float_type`` is the type of activations; ``accuracy_level`` is MatMulNBits' (1 fp32, 4 int8 activations).

    ``is_for_browsers`` is the transformers.js flavour: ``position_ids`` is an input, prompts may be padded on the left,
    and every operator is one that onnxruntime-web has.
    """

    float_type: str
    accuracy_level: int
    is_for_browsers: bool
    data_files: tuple[str, ...]


def build_model(config: Qwen3Config, plan: DataPlan, options: GraphOptions, *, metadata: Mapping[str, str]) -> ir.Model:
    """Build the whole graph; its weights are in the data files."""
    return _Writer(config, plan, options).model(metadata)


class _Writer:
    """Writes one graph; its methods add nodes and return values, [batch, sequence, …]."""

    def __init__(self, config: Qwen3Config, plan: DataPlan, options: GraphOptions) -> None:
        self.config, self.plan, self.options = config, plan, options
        self.build = GraphBuilder(options.data_files)
        self.dtype = ir.DataType.FLOAT if options.float_type == "F32" else ir.DataType.FLOAT16
        self.input_ids = _value("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        self.attention_mask = _value("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
        self.position_ids = _value("position_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
        self.pasts = [
            self._cache("past_key_values", layer, "past_sequence_length") for layer in range(config.num_hidden_layers)
        ]
        self.presents: list[ir.Value] = []

    def model(self, metadata: Mapping[str, str]) -> ir.Model:
        self.tokens, self.positions, order = self.input_ids, self.position_ids, None
        if self.options.is_for_browsers:
            order = order_of_tokens(self.build, self.input_ids, self.attention_mask)
            self.tokens = order.apply(self.input_ids, name="tokens")
            self.positions = order.apply(self.position_ids, name="positions")
        self.lengths = self._lengths()
        hidden, residual = None, self._embedding()
        for layer in range(self.config.num_hidden_layers):
            residual, normed = self._norm(residual, hidden, Kind.INPUT_LAYERNORM, layer)
            attended = self._attention(normed, layer)
            residual, normed = self._norm(residual, attended, Kind.POST_ATTENTION_LAYERNORM, layer)
            hidden = self._mlp(normed, layer)
        _, final = self._norm(residual, hidden, Kind.NORM, None)
        if order is not None:
            final = order.undo(final, name="model.final.as_it_was", dtype=self.dtype)
        logits = self._logits(final)
        inputs = [self.input_ids, self.attention_mask]
        inputs += [self.position_ids] if self.options.is_for_browsers else []
        graph = ir.Graph(
            [*inputs, *(value for pair in self.pasts for value in pair)],
            [logits, *self.presents],
            nodes=self.build.nodes,
            initializers=list(self.build.initializers.values()),
            opset_imports={"": OPSET, MICROSOFT: 1},
            name="qwen3",
        )
        return ir.Model(graph, ir_version=IR_VERSION, producer_name="qwen3-export", metadata_props=dict(metadata))

    def _cache(self, prefix: str, layer: int, length: str) -> tuple[ir.Value, ir.Value]:
        shape: list[int | str] = ["batch_size", self.config.num_key_value_heads, length, self.config.head_dim]
        key, value = (_value(f"{prefix}.{layer}.{part}", self.dtype, shape) for part in ("key", "value"))
        return key, value

    def _lengths(self) -> tuple[ir.Value, ir.Value]:
        """Inputs of GroupQueryAttention: the last position of each sequence, and the longest length, as int32."""
        build = self.build
        counts = build.op("ReduceSum", self.attention_mask, build.integers(1), name="counts", keepdims=0)
        last = build.op("Sub", counts, build.integers(1), name="last_positions")
        total = build.op(
            "Gather", build.op("Shape", self.attention_mask, name="mask_shape"), build.scalar(1), name="total"
        )
        int32 = int(ir.DataType.INT32)
        return (
            build.op("Cast", last, name="last_positions_int32", to=int32),
            build.op("Cast", total, name="total_int32", to=int32),
        )

    def _embedding(self) -> ir.Value:
        name, build = module_name(Role(Kind.EMBED_TOKENS)), self.build
        places, integers = self.plan.initializers[name], self.plan.matrices[name].integers
        output = site_name(Site(Place.INPUT, 0))
        if integers is None:
            return build.op("Gather", build.stored(places[VALUES]), self.tokens, name=output, dtype=self.dtype)
        if self.options.is_for_browsers:
            return gather_rows(build, places, integers, self.tokens, name=name, output=output, dtype=self.dtype)
        codes = places[CODES]
        rows, groups, size = codes.shape
        # The head multiplies with the same bytes whose rows are gathered here; the two operators see different shapes.
        inputs = [build.stored(codes, name=f"{name}.{ROWS}", shape=(rows, groups * size)), self.tokens]
        inputs += [build.stored(places[part]) for part in (SCALES, ZERO_POINTS) if part in places]
        return build.op(
            "GatherBlockQuantized",
            *inputs,
            name=output,
            domain=MICROSOFT,
            dtype=self.dtype,
            bits=integers.num_bits,
            block_size=integers.group_size or 0,
            gather_axis=0,
            quantize_axis=1,
        )

    def _norm(
        self, residual: ir.Value, added: ir.Value | None, kind: Kind, layer: int | None
    ) -> tuple[ir.Value, ir.Value]:
        """Add ``added`` to the residual stream, and normalize it. The first layer begins with a norm alone."""
        weight = self._vector(kind, layer)
        eps = self.config.rms_norm_eps
        final = kind is Kind.NORM
        name = site_name(Site(Place.FINAL)) if final else f"{module_name(Role(kind, layer))}.output"
        if added is None:
            return residual, self._simple_norm(residual, weight, name)
        summed = "" if final else self._sum_name(kind, layer)
        names = [name, "", "", summed] if summed else [name]
        found = self.build.ops(
            "SkipSimplifiedLayerNormalization",
            residual,
            added,
            weight,
            names=names,
            domain=MICROSOFT,
            dtype=self.dtype,
            epsilon=eps,
        )
        return found[-1], found[0]

    @staticmethod
    def _sum_name(kind: Kind, layer: int | None) -> str:
        assert layer is not None
        if kind is Kind.POST_ATTENTION_LAYERNORM:
            return site_name(Site(Place.AFTER_ATTENTION, layer))
        return site_name(Site(Place.OUTPUT, layer - 1))

    def _simple_norm(self, x: ir.Value, weight: ir.Value, name: str) -> ir.Value:
        return self.build.op(
            "SimplifiedLayerNormalization",
            x,
            weight,
            name=name,
            dtype=self.dtype,
            axis=-1,
            epsilon=self.config.rms_norm_eps,
            stash_type=1,
        )

    def _attention(self, x: ir.Value, layer: int) -> ir.Value:
        config, build = self.config, self.build
        prefix = f"model.layers.{layer}.self_attn"
        q, k, v = self._heads(x, layer)
        q = self._head_norm(q, Kind.Q_NORM, layer, config.num_attention_heads)
        k = self._head_norm(k, Kind.K_NORM, layer, config.num_key_value_heads)
        caches = [build.stored(self.plan.constants[name][0]) for name in (COS_CACHE, SIN_CACHE)]
        if self.options.is_for_browsers:
            q = self._rotated(q, caches, site_name(Site(Place.Q_ROPE, layer)), config.num_attention_heads)
            k = self._rotated(k, caches, site_name(Site(Place.K_ROPE, layer)), config.num_key_value_heads)
            caches = []
        present = self._cache("present", layer, "total_sequence_length")
        names = [f"{prefix}.context", present[0].name or "", present[1].name or ""]
        context, key, value = build.ops(
            "GroupQueryAttention",
            q,
            k,
            v,
            *self.pasts[layer],
            *self.lengths,
            *caches,
            names=names,
            domain=MICROSOFT,
            dtype=self.dtype,
            num_heads=config.num_attention_heads,
            kv_num_heads=config.num_key_value_heads,
            scale=config.head_dim**-0.5,
            do_rotary=0 if self.options.is_for_browsers else 1,
            rotary_interleaved=0,
        )
        for made, described in zip((key, value), present, strict=True):
            made.shape = described.shape
            self.presents.append(made)
        return self._multiply(context, module_name(Role(Kind.O_PROJ, layer)), site_name(Site(Place.ATTENTION, layer)))

    def _heads(self, x: ir.Value, layer: int) -> Sequence[ir.Value]:
        config = self.config
        kinds = (Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ)
        names = [module_name(Role(kind, layer)) for kind in kinds]
        if fused_name(layer) not in self.plan.matrices:
            return [self._multiply(x, name, f"{name}.output") for name in names]
        q_size, kv_size = (
            heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads)
        )
        together = self._multiply(x, fused_name(layer), f"{fused_name(layer)}.output")
        sizes = self.build.integers(q_size, kv_size, kv_size)
        return self.build.ops(
            "Split", together, sizes, names=[f"{name}.output" for name in names], dtype=self.dtype, axis=-1
        )

    def _head_norm(self, x: ir.Value, kind: Kind, layer: int, heads: int) -> ir.Value:
        """RMSNorm of each head: reshape to rows of head_dim, and back to [batch, sequence, heads · head_dim]."""
        build, name = self.build, module_name(Role(kind, layer))
        head_dim = self.config.head_dim
        apart = build.op("Reshape", x, build.integers(0, -1, head_dim), name=f"{name}.heads", dtype=self.dtype)
        normed = self._simple_norm(apart, self._vector(kind, layer), f"{name}.normed")
        return build.op(
            "Reshape", normed, build.integers(0, -1, heads * head_dim), name=f"{name}.output", dtype=self.dtype
        )

    def _rotated(self, x: ir.Value, caches: Sequence[ir.Value], name: str, heads: int) -> ir.Value:
        return self.build.op(
            "RotaryEmbedding",
            x,
            self.positions,
            *caches,
            name=name,
            domain=MICROSOFT,
            dtype=self.dtype,
            interleaved=0,
            num_heads=heads,
            rotary_embedding_dim=self.config.head_dim,
        )

    def _mlp(self, x: ir.Value, layer: int) -> ir.Value:
        output = site_name(Site(Place.MLP, layer))
        if self.config.is_sparse_layer(layer):
            return self._mixture(x, layer, output)
        gate, up = (
            self._multiply(x, name, f"{name}.output")
            for name in (module_name(Role(kind, layer)) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ))
        )
        prefix, build = f"model.layers.{layer}.mlp", self.build
        share = build.op("Sigmoid", gate, name=f"{prefix}.sigmoid", dtype=self.dtype)
        silu = build.op("Mul", gate, share, name=f"{prefix}.silu", dtype=self.dtype)
        gated = build.op("Mul", silu, up, name=f"{prefix}.gated", dtype=self.dtype)
        return self._multiply(gated, module_name(Role(Kind.DOWN_PROJ, layer)), output)

    def _mixture(self, x: ir.Value, layer: int, output: str) -> ir.Value:
        """All experts as one node: softmax over the router's scores, the best few, SwiGLU, and the weighted sum."""
        config, build = self.config, self.build
        router = module_name(Role(Kind.ROUTER, layer))
        scores = self._multiply(x, router, f"{router}.output")
        scores = build.op(
            "Reshape", scores, build.integers(-1, config.num_experts), name=f"{router}.rows", dtype=self.dtype
        )
        made = f"{output}.normalized" if not config.norm_topk_prob else output
        mixed = self._experts(x, scores, layer, made)
        return mixed if config.norm_topk_prob else self._unnormalized(mixed, scores, layer, output)

    def _unnormalized(self, mixed: ir.Value, scores: ir.Value, layer: int, output: str) -> ir.Value:
        """Multiply by the sum of the chosen experts' shares, because the CPU operator scales them to sum to one."""
        config, build, prefix = self.config, self.build, f"model.layers.{layer}.mlp.shares"
        shares = build.op("Softmax", scores, name=f"{prefix}.all", dtype=self.dtype, axis=-1)
        count = build.integers(config.num_experts_per_tok)
        best, _ = build.ops("TopK", shares, count, names=[f"{prefix}.best", f"{prefix}.experts"], axis=-1)
        total = build.op("ReduceSum", best, build.integers(-1), name=f"{prefix}.sum", dtype=self.dtype, keepdims=1)
        shape = build.op("Shape", self.input_ids, name=f"{prefix}.tokens")
        shape = build.op("Concat", shape, build.integers(1), name=f"{prefix}.shape", axis=0)
        total = build.op("Reshape", total, shape, name=f"{prefix}.total", dtype=self.dtype)
        return build.op("Mul", mixed, total, name=output, dtype=self.dtype)

    def _experts(self, x: ir.Value, scores: ir.Value, layer: int, output: str) -> ir.Value:
        config, build = self.config, self.build
        fc1, fc2 = experts_names(layer)
        fc1_integers, fc2_integers = (self.plan.matrices[name].integers for name in (fc1, fc2))
        shared: dict[str, int | float | str] = {
            "k": config.num_experts_per_tok,
            "activation_type": "swiglu",
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "swiglu_fusion": 1,
            "normalize_routing_weights": 1,
        }
        if fc1_integers is None or fc2_integers is None:
            weights = [self._stacked(name, VALUES) for name in (fc1, fc2)]
            inputs = [x, scores, weights[0], None, weights[1]]
            return build.op("MoE", *inputs, name=output, domain=MICROSOFT, dtype=self.dtype, **shared)
        inputs = [x, scores, self._stacked(fc1, CODES), self._stacked(fc1, SCALES), None]
        inputs += [self._stacked(fc2, CODES), self._stacked(fc2, SCALES), None, None, None, None]
        if ZERO_POINTS in self.plan.initializers[fc1]:
            inputs += [self._stacked(fc1, ZERO_POINTS), self._stacked(fc2, ZERO_POINTS)]
        bits, fc2_bits = fc1_integers.num_bits, fc2_integers.num_bits
        shared |= {"expert_weight_bits": bits, "block_size": _block_size(fc1_integers)}
        shared |= {} if fc2_bits == bits else {"fc2_expert_weight_bits": fc2_bits}
        if not self.options.is_for_browsers or max(bits, fc2_bits) > OLD_EXPERT_BITS:
            shared |= {"weights_prepacked": 0, "accuracy_level": self.options.accuracy_level}
        return build.op("QMoE", *inputs, name=output, domain=MICROSOFT, dtype=self.dtype, **shared)

    def _stacked(self, name: str, part: str) -> ir.Value:
        """An initializer that holds all experts, [experts, rows, …]."""
        place, experts = self.plan.initializers[name][part], self.config.num_experts
        shape = (experts, place.shape[0] // experts, int(np.prod(place.shape[1:])))
        return self.build.stored(place, shape=shape)

    def _logits(self, x: ir.Value) -> ir.Value:
        role = Role(Kind.EMBED_TOKENS if self.config.tie_word_embeddings else Kind.LM_HEAD)
        name = module_name(role)
        if self.options.is_for_browsers and self.dtype == ir.DataType.FLOAT16:
            # transformers.js 3.8 takes fp16 logits for whole numbers where JavaScript has no Float16Array.
            halves = self._multiply(x, name, "logits.fp16")
            logits = self.build.op("Cast", halves, name="logits", dtype=ir.DataType.FLOAT, to=int(ir.DataType.FLOAT))
        else:
            logits = self._multiply(x, name, "logits")
        logits.shape = ir.Shape(["batch_size", "sequence_length", self.config.vocab_size])
        return logits

    def _multiply(self, x: ir.Value, name: str, output: str) -> ir.Value:
        """x Wᵀ with a stored matrix of floats or codes."""
        places, build = self.plan.initializers[name], self.build
        integers = self.plan.matrices[name].integers
        if integers is None:
            weight = build.stored(places[VALUES])
            return build.op("FusedMatMul", x, weight, name=output, domain=MICROSOFT, dtype=self.dtype, transB=1)
        rows, groups, _ = places[CODES].shape
        size = _block_size(integers)
        return build.op(
            "MatMulNBits",
            x,
            *(build.stored(places[part]) for part in (CODES, SCALES, ZERO_POINTS) if part in places),
            name=output,
            domain=MICROSOFT,
            dtype=self.dtype,
            K=groups * size,
            N=rows,
            bits=integers.num_bits,
            block_size=size,
            accuracy_level=self.options.accuracy_level,
        )

    def _vector(self, kind: Kind, layer: int | None) -> ir.Value:
        return self.build.stored(self.plan.initializers[module_name(Role(kind, layer))][VALUES])


def _block_size(integers: AffineFormat) -> int:
    assert integers.group_size is not None
    return integers.group_size


def _value(name: str, dtype: ir.DataType, shape: Sequence[int | str]) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
