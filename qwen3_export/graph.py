"""A Qwen3 model as a graph: a config and its weights, by name and by role.

All Qwen3 models are wired alike, so the graph holds no edges; models differ in their config and in how each weight is
stored. A ``Weight`` knows its shape, its number format and where it lies, and reads its values (all of them, or a block
of rows) only when ``read`` is called. So opening a 60 GB checkpoint reads headers only. A weight's ``role`` says what
it is for (q_proj of layer 3, down_proj of expert 17), so that no other code has to parse names.

Experts are always separate weights here (``model.layers.L.mlp.experts.E.gate_proj``), even if the checkpoint stores
them fused. Targets that want them stacked do that themselves.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from qwen3_export.config import Qwen3Config

if TYPE_CHECKING:
    import numpy as np

__all__ = ["ALL_ROWS", "DerivedWeight", "Graph", "Kind", "Role", "Weight", "expected_weights", "module_name"]

ALL_ROWS = slice(None)


class Kind(str, Enum):
    """What a weight is for, by the names that checkpoints use."""

    EMBED_TOKENS = "embed_tokens"
    INPUT_LAYERNORM = "input_layernorm"
    Q_PROJ = "q_proj"
    K_PROJ = "k_proj"
    V_PROJ = "v_proj"
    Q_NORM = "q_norm"
    K_NORM = "k_norm"
    O_PROJ = "o_proj"
    POST_ATTENTION_LAYERNORM = "post_attention_layernorm"
    ROUTER = "gate"
    GATE_PROJ = "gate_proj"
    UP_PROJ = "up_proj"
    DOWN_PROJ = "down_proj"
    NORM = "norm"
    LM_HEAD = "lm_head"


NORMS = frozenset({Kind.INPUT_LAYERNORM, Kind.Q_NORM, Kind.K_NORM, Kind.POST_ATTENTION_LAYERNORM, Kind.NORM})
ATTENTION = frozenset({Kind.Q_PROJ, Kind.K_PROJ, Kind.V_PROJ, Kind.Q_NORM, Kind.K_NORM, Kind.O_PROJ})
MLP = frozenset({Kind.ROUTER, Kind.GATE_PROJ, Kind.UP_PROJ, Kind.DOWN_PROJ})


@dataclass(frozen=True, slots=True)
class Role:
    """What one weight is for: its kind, its layer (None outside layers), its expert (None outside experts)."""

    kind: Kind
    layer: int | None = None
    expert: int | None = None

    @property
    def is_norm(self) -> bool:
        return self.kind in NORMS


class Weight(Protocol):
    """One weight of the graph, dense or quantized; matrices are [out_features, in_features]."""

    @property
    def name(self) -> str: ...  # the Hugging Face module name, without ".weight"

    @property
    def role(self) -> Role: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def format(self) -> str: ...  # name of the number format: "BF16", "F32", "Q4_K", …

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The weight's values in fp32: [rows, in_features], or [rows] for a vector."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A Qwen3 model: ``weights`` by Hugging Face module name, in the order in which a forward pass uses them.

    ``name`` is what the user calls the model; ``notes`` are sentences for the user about how it was read. A model whose
    output head is tied to the embedding has no ``lm_head`` among its weights.
    """

    name: str
    config: Qwen3Config
    weights: Mapping[str, Weight]
    notes: tuple[str, ...] = ()

    def __getitem__(self, role: Role) -> Weight:
        return self.weights[module_name(role)]

    def __iter__(self) -> Iterator[Weight]:
        return iter(self.weights.values())

    @property
    def head(self) -> Weight:
        """The output projection: ``lm_head``, or the embedding if the two are tied."""
        return self[Role(Kind.EMBED_TOKENS if self.config.tie_word_embeddings else Kind.LM_HEAD)]

    @property
    def num_parameters(self) -> int:
        return sum(_count(weight.shape) for weight in self)

    def with_weights(self, weights: Mapping[str, Weight]) -> Graph:
        """The same model with other weights under the same names."""
        if weights.keys() != self.weights.keys():
            raise ValueError("with_weights keeps the names of the graph")
        return replace(self, weights=MappingProxyType(dict(weights)))

    def truncated(self, first: int, count: int) -> Graph:
        """A smaller model: ``count`` layers of this one from ``first`` on, numbered from 0.

        Embedding, final norm and head stay. Used to check a large model a few layers at a time.
        """
        layers = {first + i: i for i in range(count)}
        kept: dict[str, Weight] = {}
        for weight in self:
            layer = weight.role.layer
            if layer is None:
                kept[weight.name] = weight
            elif layer in layers:
                moved = RenamedWeight(source=weight, new_role=replace(weight.role, layer=layers[layer]))
                kept[moved.name] = moved
        config = replace(self.config, num_hidden_layers=count)
        if self.config.is_moe:
            dense = tuple(i for layer, i in layers.items() if not self.config.is_sparse_layer(layer))
            config = replace(config, decoder_sparse_step=1, mlp_only_layers=dense)
        return replace(self, config=config, weights=MappingProxyType(kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivedWeight:
    """A weight made of another one; subclasses change some of its name, role, shape, format and values."""

    source: Weight

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def role(self) -> Role:
        return self.source.role

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def format(self) -> str:
        return self.source.format

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        return self.source.read(rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenamedWeight(DerivedWeight):
    """A weight under another role."""

    new_role: Role

    @property
    def role(self) -> Role:
        return self.new_role


def module_name(role: Role) -> str:
    """The Hugging Face module name of a role, such as ``model.layers.3.mlp.experts.17.down_proj``."""
    kind = role.kind
    if role.layer is None:
        return kind.value if kind is Kind.LM_HEAD else f"model.{kind.value}"
    prefix = f"model.layers.{role.layer}"
    if kind in ATTENTION:
        return f"{prefix}.self_attn.{kind.value}"
    if kind in MLP:
        expert = "" if role.expert is None else f"experts.{role.expert}."
        return f"{prefix}.mlp.{expert}{kind.value}"
    return f"{prefix}.{kind.value}"


def expected_weights(config: Qwen3Config) -> dict[Role, tuple[int, ...]]:
    """The role and shape of every weight of a model with this config, in the order of a forward pass."""
    hidden, head_dim, vocab = config.hidden_size, config.head_dim, config.vocab_size
    q_size, kv_size = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    shapes: dict[Role, tuple[int, ...]] = {Role(Kind.EMBED_TOKENS): (vocab, hidden)}
    for layer in range(config.num_hidden_layers):
        shapes |= {
            Role(Kind.INPUT_LAYERNORM, layer): (hidden,),
            Role(Kind.Q_PROJ, layer): (q_size, hidden),
            Role(Kind.K_PROJ, layer): (kv_size, hidden),
            Role(Kind.V_PROJ, layer): (kv_size, hidden),
            Role(Kind.Q_NORM, layer): (head_dim,),
            Role(Kind.K_NORM, layer): (head_dim,),
            Role(Kind.O_PROJ, layer): (hidden, q_size),
            Role(Kind.POST_ATTENTION_LAYERNORM, layer): (hidden,),
        }
        shapes |= _expected_mlp(config, layer)
    shapes[Role(Kind.NORM)] = (hidden,)
    if not config.tie_word_embeddings:
        shapes[Role(Kind.LM_HEAD)] = (vocab, hidden)
    return shapes


def _expected_mlp(config: Qwen3Config, layer: int) -> dict[Role, tuple[int, ...]]:
    hidden = config.hidden_size
    if not config.is_sparse_layer(layer):
        return _expected_gated(layer, None, hidden, config.intermediate_size)
    shapes: dict[Role, tuple[int, ...]] = {Role(Kind.ROUTER, layer): (config.num_experts, hidden)}
    for expert in range(config.num_experts):
        shapes |= _expected_gated(layer, expert, hidden, config.moe_intermediate_size)
    return shapes


def _expected_gated(layer: int, expert: int | None, hidden: int, intermediate: int) -> dict[Role, tuple[int, ...]]:
    return {
        Role(Kind.GATE_PROJ, layer, expert): (intermediate, hidden),
        Role(Kind.UP_PROJ, layer, expert): (intermediate, hidden),
        Role(Kind.DOWN_PROJ, layer, expert): (hidden, intermediate),
    }


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
