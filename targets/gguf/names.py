"""GGUF's names for the weights of a Qwen3, and the tensors of its file.

A graph has each expert apart; a GGUF file stacks the experts of a layer into one tensor, [E, out, in]. ``gguf_tensors``
gives the file's tensors in file order, each with the graph's weights that form it. Shapes are the graph's, outermost
first; GGUF itself lists dimensions innermost first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.graph import Graph, Kind, Role, Weight

__all__ = [
    "GgufTensor",
    "check_representable",
    "gguf_tensors",
    "is_stacked",
    "parse_tensor_name",
    "stack_weights",
    "tensor_name",
]

# The order within each table is the order within the file.
BEFORE_BLOCKS = {Kind.EMBED_TOKENS: "token_embd"}
BLOCK = {
    Kind.INPUT_LAYERNORM: "attn_norm",
    Kind.Q_PROJ: "attn_q",
    Kind.K_PROJ: "attn_k",
    Kind.V_PROJ: "attn_v",
    Kind.Q_NORM: "attn_q_norm",
    Kind.K_NORM: "attn_k_norm",
    Kind.O_PROJ: "attn_output",
    Kind.POST_ATTENTION_LAYERNORM: "ffn_norm",
    Kind.ROUTER: "ffn_gate_inp",
    Kind.GATE_PROJ: "ffn_gate",
    Kind.UP_PROJ: "ffn_up",
    Kind.DOWN_PROJ: "ffn_down",
}
AFTER_BLOCKS = {Kind.NORM: "output_norm", Kind.LM_HEAD: "output"}
STACKED = {
    Kind.GATE_PROJ: "ffn_gate_exps",
    Kind.UP_PROJ: "ffn_up_exps",
    Kind.DOWN_PROJ: "ffn_down_exps",
}

_OUTSIDE = BEFORE_BLOCKS | AFTER_BLOCKS
_KIND_OUTSIDE = {base: kind for kind, base in _OUTSIDE.items()}
_KIND_IN_BLOCK = {base: kind for table in (BLOCK, STACKED) for kind, base in table.items()}
_POSITION = {kind: i for i, kind in enumerate([*BEFORE_BLOCKS, *BLOCK, *AFTER_BLOCKS])}
_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d*)\.)?(?P<base>[a-z_]+)\.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTensor:
    """One tensor of the file; ``shape`` is [out, in], [size] for a vector, [E, out, in] for stacked experts.

    ``members`` are the graph's weights that form it, in expert order; only one if it is not stacked.
    """

    name: str
    kind: Kind
    layer: int | None
    shape: tuple[int, ...]
    members: tuple[Weight, ...]

    @property
    def base(self) -> str:
        """The name without block and suffix: ``attn_v``, ``ffn_down_exps``, ``token_embd``."""
        return self.name.removesuffix(".weight").rpartition(".")[2]

    @property
    def is_stacked(self) -> bool:
        return len(self.shape) == 3

    @property
    def columns(self) -> int:
        """Length of a row, which must be a multiple of a quantization block."""
        return self.shape[-1]


def tensor_name(role: Role) -> str:
    """The tensor that holds this role. For an expert, the tensor with all experts of its layer."""
    if role.layer is None:
        return f"{_OUTSIDE[role.kind]}.weight"
    base = BLOCK[role.kind] if role.expert is None else STACKED[role.kind]
    return f"blk.{role.layer}.{base}.weight"


def parse_tensor_name(name: str) -> Role | None:
    """The role that a tensor's name stands for, or None if it is not a tensor of a Qwen3.

    The role of stacked experts has no expert number; ``is_stacked`` tells them apart from a dense MLP.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    layer = match["layer"]
    kind = (_KIND_OUTSIDE if layer is None else _KIND_IN_BLOCK).get(match["base"])
    if kind is None:
        return None
    return Role(kind, None if layer is None else int(layer))


def is_stacked(name: str) -> bool:
    """True if a tensor of this name holds all experts of its layer."""
    match = _NAME.fullmatch(name)
    return match is not None and match["layer"] is not None and match["base"] in STACKED.values()


def gguf_tensors(graph: Graph) -> list[GgufTensor]:
    """The file's tensors in file order: embedding, blocks, final norm, output.

    The order depends only on names, not on the order of the graph's weights. Raises UnsupportedModelError if llama.cpp
    has no graph for the model.
    """
    check_representable(graph.config)
    return stack_weights(graph)


def stack_weights(weights: Iterable[Weight]) -> list[GgufTensor]:
    """Group weights by tensor: experts in order, tensors in file order."""
    members: dict[str, list[Weight]] = {}
    for weight in weights:
        members.setdefault(tensor_name(weight.role), []).append(weight)
    return sorted((_stack(name, found) for name, found in members.items()), key=_file_position)


def check_representable(config: Qwen3Config) -> None:
    """Refuse models that llama.cpp's ``qwen3moe`` graph would compute differently or not load.

    It builds a mixture of experts in every layer (it reads ``ffn_gate_inp`` and never ``ffn_gate``). It also always
    renormalises the top-k routing weights; no key turns that off.
    """
    if not config.is_moe:
        return
    dense = [layer for layer in range(config.num_hidden_layers) if not config.is_sparse_layer(layer)]
    if dense:
        raise UnsupportedModelError(
            f"config.json: layer {dense[0]} has a dense MLP, and llama.cpp's qwen3moe has experts in every "
            "layer, so a file would compute something else"
        )
    if not config.norm_topk_prob:
        raise UnsupportedModelError(
            "config.json: norm_topk_prob is false, and llama.cpp's qwen3moe always renormalises the top-k "
            "routing weights, so a file would compute something else"
        )


def _stack(name: str, found: list[Weight]) -> GgufTensor:
    role, shape = found[0].role, found[0].shape
    if role.expert is not None:
        found = sorted(found, key=lambda weight: weight.role.expert or 0)
        experts = [weight.role.expert for weight in found]
        assert experts == list(range(len(found))), f"{name}: experts are missing"
        assert all(weight.shape == shape for weight in found), f"{name}: experts differ in shape"
        shape = (len(found), *shape)
    return GgufTensor(name=name, kind=role.kind, layer=role.layer, shape=shape, members=tuple(found))


def _file_position(tensor: GgufTensor) -> tuple[int, int, int]:
    section = 0 if tensor.kind in BEFORE_BLOCKS else 2 if tensor.kind in AFTER_BLOCKS else 1
    return section, tensor.layer or 0, _POSITION[tensor.kind]
