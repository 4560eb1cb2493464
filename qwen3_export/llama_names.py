"""llama.cpp's names for the weights of a Qwen3.

GGUF files, importance matrices and saved reports use these names. ``tensor_name`` and ``parse_tensor_name`` are
inverse, except that the experts of a layer share one name: a GGUF file stacks them into one tensor.
"""

from __future__ import annotations

import re

from qwen3_export.graph import Kind, Role

__all__ = [
    "AFTER_BLOCKS",
    "BEFORE_BLOCKS",
    "BLOCK",
    "STACKED",
    "is_stacked",
    "parse_tensor_name",
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
_NAME = re.compile(r"(?:blk\.(?P<layer>0|[1-9]\d*)\.)?(?P<base>[a-z_]+)\.weight")


def tensor_name(role: Role) -> str:
    """The tensor that holds this role; an expert's role gives the tensor of the whole layer's experts."""
    if role.layer is None:
        return f"{_OUTSIDE[role.kind]}.weight"
    base = BLOCK[role.kind] if role.expert is None else STACKED[role.kind]
    return f"blk.{role.layer}.{base}.weight"


def parse_tensor_name(name: str) -> Role | None:
    """The role that a tensor's name stands for, or None where it is no tensor of a Qwen3.

    Stacked experts give the role without an expert; ``is_stacked`` tells them apart from a dense MLP's.
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
    """Whether a tensor of this name holds all experts of its layer."""
    match = _NAME.fullmatch(name)
    return match is not None and match["layer"] is not None and match["base"] in STACKED.values()
