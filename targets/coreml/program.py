"""Qwen3 as a MIL program, declared operator by operator.

    inputIds ─ embed ─┬─ norm ─ q, k, v ─ head norms ─ RoPE ─ states ─ attention ─ o ─┬─ norm ─ gate, up ─ down ─ logits
                      └────────────────────────── residual ──────────────────────────┘

The tokens' positions follow from the shapes of the inputs. The mask has one of two forms:

- ``attentionMask`` [1, 1, 1, S + 1], which is added to the scores of every token. All releases of swift-transformers
  fill it with zeros and with one column more than there are positions. So the program drops the last column, and
  builds the causal mask itself, from a table of positions.
- ``fullAttentionMask`` [1, 1, T, S], which must hold the causal mask.

One state holds the keys of all layers and another the values, as swift-transformers expects. A layer writes its slice,
[1, K, T, H], at the tokens' positions and reads back everything seen so far. Core ML's states are fp16 in every
program; an fp32 program casts when it writes and reads them.
Values that the reference can show are named after its sites (``site_name``).

Shapes: # T tokens  S positions seen  C positions of a state  L layers  N heads  K kv heads  G heads_per_kv  H head_dim
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Kind, Role, module_name
from qwen3_export.reference.probe import Place, Site
from qwen3_export.targets.coreml.blocks import MASKED, Turn, attend, rms_norm, rotate
from qwen3_export.targets.coreml.builder import ProgramBuilder, Var
from qwen3_export.targets.coreml.layout import WeightPlan
from qwen3_export.targets.coreml.names import (
    ATTENTION_MASK,
    COS_TABLE,
    HEAD_PART,
    INPUT_IDS,
    KEY_CACHE,
    LOGITS,
    POSITIONS,
    SIN_TABLE,
    VALUE_CACHE,
    mil_name,
    rope_tables,
    site_name,
)

__all__ = ["ProgramOptions", "build_program", "constants", "state_shape"]

# The Neural Engine fails on states whose positions are not a multiple of this (coremltools' issue 2631).
STATE_STEP = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOptions:
    """``float_type`` is the type of activations; ``has_fused_attention`` selects Core ML's own attention operator.

    ``mask`` is the name of the mask's input, which stands for its form.
    """

    float_type: str
    context_length: int
    has_fused_attention: bool = False
    mask: str = ATTENTION_MASK

    @property
    def builds_mask(self) -> bool:
        """Whether the program builds the causal mask; otherwise the app gives it."""
        return self.mask == ATTENTION_MASK


def state_shape(config: Qwen3Config, context_length: int) -> tuple[int, ...]:
    """Shape of each of the two states, [L, 1, K, C, H]."""
    positions = -(-context_length // STATE_STEP) * STATE_STEP
    return (config.num_hidden_layers, 1, config.num_key_value_heads, positions, config.head_dim)


def constants(config: Qwen3Config, options: ProgramOptions, *, out_features: Sequence[int]) -> dict[str, np.ndarray]:
    """The constants besides weights: RoPE's tables, positions, and the zero biases that linear operators require."""
    dtype = "<f4" if options.float_type == "F32" else "<f2"
    biases = {_bias_name(size): np.zeros(size, dtype) for size in sorted(set(out_features))}
    tables = rope_tables(config, length=options.context_length)
    if options.builds_mask:
        tables[POSITIONS] = np.arange(options.context_length, dtype="<f4")
    return {**tables, **biases}


def build_program(config: Qwen3Config, plan: WeightPlan, options: ProgramOptions) -> Any:
    """Build the program, a coremltools Program with the function ``main``; its weights are placeholders."""
    import coremltools as ct
    from coremltools.converters.mil.input_types import RangeDim, TensorType
    from coremltools.converters.mil.mil import Builder, Function, Program, get_new_symbol, types

    Builder.name_count.clear()  # names of unnamed constants must not depend on programs built before
    tokens, columns = get_new_symbol(), get_new_symbol()
    state, longest = state_shape(config, options.context_length), options.context_length
    rows = 1 if options.builds_mask else tokens
    inputs = {
        INPUT_IDS: Builder.placeholder((1, tokens), types.int32),
        options.mask: Builder.placeholder((1, 1, rows, columns), types.fp16),
        KEY_CACHE: Builder.state_tensor_placeholder(state, types.fp16),
        VALUE_CACHE: Builder.state_tensor_placeholder(state, types.fp16),
    }
    with Function(inputs, opset_version=ct.target.iOS18) as function:
        function.set_outputs([_Writer(config, plan, options, function.inputs).logits()])
    ids = RangeDim(lower_bound=1, upper_bound=longest, default=1)
    spare = 1 if options.builds_mask else 0
    seen = RangeDim(lower_bound=1 + spare, upper_bound=longest + spare, default=1 + spare)
    mask = (1, 1, 1 if options.builds_mask else ids, seen)
    function.set_input_types(
        (
            TensorType(name=INPUT_IDS, shape=(1, ids), dtype=np.int32),
            TensorType(name=options.mask, shape=mask, dtype=np.float16),
        )
    )
    program = Program()
    program.add_function("main", function)
    return program


class _Writer:
    """Writes one program; its methods add operators and return values."""

    def __init__(self, config: Qwen3Config, plan: WeightPlan, options: ProgramOptions, inputs: dict[str, Var]) -> None:
        self.config, self.plan, self.options, self.inputs = config, plan, options, inputs
        self.build = ProgramBuilder(plan, float_type=options.float_type)

    def logits(self) -> Var:
        build = self.build
        self._read_positions()
        self.mask = self._stacked_mask()
        self.q_turn, self.k_turn = self._turns()
        embed = build.weight(mil_name(module_name(Role(Kind.EMBED_TOKENS))))
        hidden = build.op(
            "gather", x=embed, indices=self.inputs[INPUT_IDS], axis=0, name=site_name(Site(Place.INPUT, 0))
        )
        for layer in range(self.config.num_hidden_layers):
            added = self._attention(self._norm(hidden, Kind.INPUT_LAYERNORM, layer), layer)
            hidden = build.op("add", x=hidden, y=added, name=site_name(Site(Place.AFTER_ATTENTION, layer)))
            added = self._mlp(self._norm(hidden, Kind.POST_ATTENTION_LAYERNORM, layer), layer)
            hidden = build.op("add", x=hidden, y=added, name=site_name(Site(Place.OUTPUT, layer)))
        return self._head(self._norm(hidden, Kind.NORM, None))

    def _read_positions(self) -> None:
        """The number of earlier tokens, and of all tokens, as vectors of one element."""
        build = self.build
        ids = build.op("shape", x=self.inputs[INPUT_IDS], name="ids_shape")
        tokens = build.op("slice_by_index", x=ids, begin=[1], end=[2], name="tokens")
        mask = build.op("shape", x=self.inputs[self.options.mask], name="mask_shape")
        last = "columns" if self.options.builds_mask else "seen"
        self.seen = build.op("slice_by_index", x=mask, begin=[3], end=[4], name=last)
        if self.options.builds_mask:
            spare = build.mb.const(val=np.array([1], np.int32), name="spare_columns")
            self.seen = build.op("sub", x=self.seen, y=spare, name="seen")
        self.past = build.op("sub", x=self.seen, y=tokens, name="past")

    def _stacked_mask(self) -> Var:
        """The mask of stacked queries, [1, 1, G·T, S], with finite values only."""
        build, masked = self.build, self.build.number("masked", MASKED)
        given = self.inputs[self.options.mask]
        if self.options.builds_mask:
            given = build.op(
                "slice_by_index",
                x=given,
                begin=[0, 0, 0, 0],
                end=[0, 0, 0, -1],
                end_mask=[True, True, True, False],
                name="mask_seen",
            )
        mask = build.op("maximum", x=build.as_float(given, name="mask"), y=masked, name="finite_mask")
        if self.options.builds_mask:
            both = build.op("add", x=mask, y=self._causal_mask(masked), name="joined_mask")
            mask = build.op("maximum", x=both, y=masked, name="finite_joined_mask")
        copies = [mask] * self.config.heads_per_kv
        return build.op("concat", values=copies, axis=2, name="stacked_mask") if len(copies) > 1 else mask

    def _causal_mask(self, masked: Var) -> Var:
        """``masked`` where a key comes after its query, else 0: [T, S]."""
        build = self.build
        zero = build.mb.const(val=np.array([0], np.int32), name="first_position")
        positions, seen = build.constant(POSITIONS), self.seen
        queries = build.op("slice_by_index", x=positions, begin=self.past, end=seen, name="query_positions")
        keys = build.op("slice_by_index", x=positions, begin=zero, end=seen, name="key_positions")
        queries = build.op("expand_dims", x=queries, axes=[1], name="query_rows")
        keys = build.op("expand_dims", x=keys, axes=[0], name="key_columns")
        is_later = build.op("greater", x=keys, y=queries, name="is_later")
        later = build.as_float(is_later, name="later")
        return build.op("mul", x=later, y=masked, name="causal_mask")

    def _turns(self) -> tuple[Turn, Turn]:
        """RoPE's rows for these tokens, for queries and for keys. Those for queries include the scale of the scores."""
        build = self.build
        zero = build.mb.const(val=np.array([0], np.int32), name="first_pair")
        begin = build.op("concat", values=[self.past, zero], axis=0, name="turn_begin")
        end = build.op("concat", values=[self.seen, zero], axis=0, name="turn_end")
        rows = {
            table: build.op(
                "slice_by_index",
                x=build.constant(table),
                begin=begin,
                end=end,
                end_mask=[False, True],
                name=f"{table}_rows",
            )
            for table in (COS_TABLE, SIN_TABLE)
        }
        keys = Turn(**{part: build.as_float(rows[f"{part}_table"], name=f"k_{part}") for part in ("cos", "sin")})
        if self.options.has_fused_attention:
            return keys, keys
        scale = build.mb.const(val=np.float32(self.config.head_dim**-0.5), name="attention_scale")
        scaled = {
            part: build.op("mul", x=rows[f"{part}_table"], y=scale, name=f"scaled_{part}_rows")
            for part in ("cos", "sin")
        }
        return Turn(**{part: build.as_float(value, name=f"q_{part}") for part, value in scaled.items()}), keys

    def _norm(self, x: Var, kind: Kind, layer: int | None) -> Var:
        weight = mil_name(module_name(Role(kind, layer)))
        name = site_name(Site(Place.FINAL)) if kind is Kind.NORM else f"{weight}_output"
        return rms_norm(self.build, x, self.build.weight(weight), self.config, name=name)

    def _linear(self, x: Var, kind: Kind, layer: int, *, name: str | None = None) -> Var:
        weight = mil_name(module_name(Role(kind, layer)))
        return self._multiply(x, weight, name=name or f"{weight}_output")

    def _multiply(self, x: Var, weight: str, *, name: str) -> Var:
        bias = self.build.constant(_bias_name(self.plan.matrices[weight].shape[0]))
        return self.build.op("linear", x=x, weight=self.build.weight(weight), bias=bias, name=name)

    def _attention(self, h: Var, layer: int) -> Var:
        build, config, prefix = self.build, self.config, f"model_layers_{layer}_self_attn"
        head_dim = config.head_dim
        q_site = site_name(Site(Place.Q_ROPE, layer))
        q_name = q_site if self.options.has_fused_attention else f"{q_site}_scaled"  # not the reference's value
        q = rotate(build, self._heads(h, Kind.Q_PROJ, layer), self.q_turn, name=q_name)
        k = rotate(build, self._heads(h, Kind.K_PROJ, layer), self.k_turn, name=site_name(Site(Place.K_ROPE, layer)))
        place = self._place(layer)
        keys = self._cached(KEY_CACHE, k, layer, place)
        values = self._cached(VALUE_CACHE, self._heads(h, Kind.V_PROJ, layer), layer, place)
        stacked = build.op(
            "reshape", x=q, shape=[1, config.num_key_value_heads, -1, head_dim], name=f"{prefix}_stacked"
        )
        context = attend(
            build,
            stacked,
            keys,
            values,
            self.mask,
            is_fused=self.options.has_fused_attention,
            name=f"{prefix}_attended",
        )
        heads = build.op(
            "reshape", x=context, shape=[1, config.num_attention_heads, -1, head_dim], name=f"{prefix}_heads"
        )
        by_token = build.op("transpose", x=heads, perm=[0, 2, 1, 3], name=f"{prefix}_by_token")
        joined = build.op(
            "reshape", x=by_token, shape=[1, -1, config.num_attention_heads * head_dim], name=f"{prefix}_context"
        )
        return self._linear(joined, Kind.O_PROJ, layer, name=site_name(Site(Place.ATTENTION, layer)))

    def _heads(self, h: Var, kind: Kind, layer: int) -> Var:
        """Queries, keys or values, [1, heads, T, H]. Queries and keys are normed."""
        build, weight = self.build, mil_name(module_name(Role(kind, layer)))
        heads = self.plan.matrices[weight].shape[0] // self.config.head_dim
        flat = self._linear(h, kind, layer)
        split = build.op("reshape", x=flat, shape=[1, -1, heads, self.config.head_dim], name=f"{weight}_heads")
        norm = {Kind.Q_PROJ: Kind.Q_NORM, Kind.K_PROJ: Kind.K_NORM}.get(kind)
        normed = split if norm is None else self._norm(split, norm, layer)
        return build.op("transpose", x=normed, perm=[0, 2, 1, 3], name=f"{weight}_by_head")

    def _place(self, layer: int) -> tuple[Var, Var]:
        """The slice of a state for a layer's tokens: first index of each axis, and the index after the last."""
        build, config, name = self.build, self.config, f"cache_{layer}"
        starts = np.array([layer, 0, 0], np.int32)
        stops = np.array([layer + 1, 1, config.num_key_value_heads], np.int32)
        zero, head_dim = np.array([0], np.int32), np.array([config.head_dim], np.int32)
        return (
            build.op("concat", values=[starts, self.past, zero], axis=0, name=f"{name}_begin"),
            build.op("concat", values=[stops, self.seen, head_dim], axis=0, name=f"{name}_end"),
        )

    def _cached(self, state: str, x: Var, layer: int, place: tuple[Var, Var]) -> Var:
        """Write keys or values [1, K, T, H] at their place, and return all that the layer has seen."""
        build, name, (begin, end) = self.build, f"{state}_{layer}", place
        update = build.cast(x, "fp16", name=f"{name}_fp16")
        update = build.op("expand_dims", x=update, axes=[0], name=f"{name}_update")
        before = build.op("read_state", input=self.inputs[state], name=f"{name}_before")
        after = build.op("slice_update", x=before, update=update, begin=begin, end=end, name=f"{name}_after")
        kept = build.op("coreml_update_state", state=self.inputs[state], value=after, name=f"{name}_kept")
        seen = build.op(
            "slice_by_index",
            x=kept,
            begin=[layer, 0, 0, 0, 0],
            end=end,
            squeeze_mask=[True, False, False, False, False],
            name=f"{name}_seen",
        )
        return build.as_float(seen, name=f"{name}_{build.dtype}")

    def _mlp(self, h: Var, layer: int) -> Var:
        build, prefix = self.build, f"model_layers_{layer}_mlp"
        gate = build.op("silu", x=self._linear(h, Kind.GATE_PROJ, layer), name=f"{prefix}_silu")
        inner = build.op("mul", x=gate, y=self._linear(h, Kind.UP_PROJ, layer), name=f"{prefix}_gated")
        return self._linear(inner, Kind.DOWN_PROJ, layer, name=site_name(Site(Place.MLP, layer)))

    def _head(self, final: Var) -> Var:
        parts = [name for name in self.plan.matrices if name.startswith(HEAD_PART)]
        if not parts:
            kind = Kind.EMBED_TOKENS if self.config.tie_word_embeddings else Kind.LM_HEAD
            return self._multiply(final, mil_name(module_name(Role(kind))), name=LOGITS)
        logits = [self._multiply(final, part, name=f"{part}_output") for part in parts]
        return self.build.op("concat", values=logits, axis=-1, name=LOGITS)


def _bias_name(size: int) -> str:
    return f"zeros_{size}"
