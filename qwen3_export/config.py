"""The hyperparameters of a Qwen3 model: the fields of ``config.json`` that change what it computes.

Fields have the names that they have in ``config.json``. Some have two spellings there (``rope_theta`` and
``rope_scaling``, or both in ``rope_parameters``; ``torch_dtype`` or ``dtype``); both are read, here and nowhere else. A
setting that would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_export.config_fields import boolean, integer, layer_numbers, number, text, wrong_type
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.files.shown import shown
from qwen3_export.yarn import YarnScaling, read_rope_parameters, read_yarn, rope_notes

__all__ = ["Qwen3Config", "YarnScaling", "config_notes", "parse_config", "stated_quantization"]

MODEL_TYPES = ("qwen3", "qwen3_moe")

# What each size may be at most: far above any model, and low enough that nothing is counted up to 10**18.
SIZE, LAYERS, EXPERTS = (1 << 31) - 1, 10_000, 10_000
LIMITS: Mapping[str, int] = {
    "vocab_size": SIZE,
    "hidden_size": SIZE,
    "intermediate_size": SIZE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": SIZE,
    "num_key_value_heads": SIZE,
    "head_dim": SIZE,
    "max_position_embeddings": SIZE,
}
MOE_LIMITS: Mapping[str, int] = {"num_experts": EXPERTS, "moe_intermediate_size": SIZE, "decoder_sparse_step": SIZE}

# Models with "Qwen3" in their name that compute something else, and why: the reason is part of the answer.
OTHER_ARCHITECTURES = {
    "qwen2": "Qwen2 has attention biases and no QK-Norm",
    "qwen2_moe": "Qwen2-MoE has shared experts and no QK-Norm",
    "qwen3_next": "Qwen3-Next has linear attention layers",
    "qwen3_5": "Qwen3.5 has linear attention layers",
    "qwen3_vl": "Qwen3-VL has a vision tower",
    "qwen3_vl_moe": "Qwen3-VL has a vision tower",
    "qwen3_omni_moe": "Qwen3-Omni has audio and vision towers",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Qwen3Config:
    """The hyperparameters of one Qwen3 or Qwen3-MoE model; MoE fields are 0 for dense models."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int  # as config.json states it; see context_length
    rms_norm_eps: float
    rope_theta: float
    tie_word_embeddings: bool
    rope_scaling: YarnScaling | None = None
    num_experts: int = 0
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = False
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    torch_dtype: str = "bfloat16"
    plain_attention_positions: int | None = None  # where dual chunk attention would begin, which is not computed

    def __post_init__(self) -> None:
        for field, limit in {**LIMITS, **(MOE_LIMITS if self.is_moe else {})}.items():
            if not 0 < getattr(self, field) <= limit:
                raise UnsupportedModelError(
                    f"config.json: {field} is {shown(getattr(self, field))}; it must be from 1 to {limit:,}"
                )
        for field in ("rms_norm_eps", "rope_theta"):
            if not 0 < getattr(self, field) < math.inf:
                raise UnsupportedModelError(f"config.json: {field} is {getattr(self, field)}; it must be positive")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UnsupportedModelError(
                f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; the file contradicts itself"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"config.json: head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if self.rope_scaling is not None and self.rope_theta <= 1:
            raise UnsupportedModelError(f"config.json: rope_theta is {self.rope_theta}; YaRN needs one above 1")
        if self.is_moe and not 0 < self.num_experts_per_tok <= self.num_experts:
            raise UnsupportedModelError(
                f"config.json: num_experts_per_tok {self.num_experts_per_tok} is not between 1 and "
                f"num_experts {self.num_experts}"
            )

    @property
    def is_moe(self) -> bool:
        return self.model_type == "qwen3_moe"

    @property
    def context_length(self) -> int:
        """The positions that the model is good for, which is what artifacts state.

        With YaRN switched on as the model cards say, max_position_embeddings keeps the length without it.
        """
        length = self.max_position_embeddings
        if self.rope_scaling is not None:
            length = max(length, self.rope_scaling.num_positions)
        return length if self.plain_attention_positions is None else min(length, self.plain_attention_positions)

    @property
    def heads_per_kv(self) -> int:
        return self.num_attention_heads // self.num_key_value_heads

    def is_sparse_layer(self, layer: int) -> bool:
        """Whether the MLP of this layer is a mixture of experts."""
        if not self.is_moe or layer in self.mlp_only_layers:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0


def parse_config(document: Mapping[str, Any]) -> Qwen3Config:
    """Read ``config.json`` in any of its spellings.

    Raises UnsupportedModelError for another architecture, for each setting that would change what the model computes
    and that this toolkit does not represent (sliding windows, biases, foreign RoPE scaling), and for fields that are
    missing or of the wrong type.
    """
    _refuse_other_architectures(document)
    _refuse_unsupported_settings(document)
    is_moe = document["model_type"] == "qwen3_moe"
    rope = read_rope_parameters(document)
    return Qwen3Config(
        model_type=document["model_type"],
        vocab_size=integer(document, "vocab_size"),
        hidden_size=integer(document, "hidden_size"),
        intermediate_size=integer(document, "intermediate_size"),
        num_hidden_layers=integer(document, "num_hidden_layers"),
        num_attention_heads=integer(document, "num_attention_heads"),
        num_key_value_heads=integer(document, "num_key_value_heads"),
        head_dim=_head_dim(document),
        max_position_embeddings=integer(document, "max_position_embeddings"),
        rms_norm_eps=number(document, "rms_norm_eps"),
        rope_theta=number(rope, "rope_theta"),
        tie_word_embeddings=boolean(document, "tie_word_embeddings"),
        rope_scaling=read_yarn(rope, document),
        num_experts=_num_experts(document) if is_moe else 0,
        num_experts_per_tok=integer(document, "num_experts_per_tok") if is_moe else 0,
        moe_intermediate_size=integer(document, "moe_intermediate_size") if is_moe else 0,
        norm_topk_prob=boolean(document, "norm_topk_prob") if is_moe else False,
        decoder_sparse_step=integer(document, "decoder_sparse_step", default=1) if is_moe else 1,
        mlp_only_layers=layer_numbers(document, "mlp_only_layers") if is_moe else (),
        torch_dtype=text(document, "torch_dtype") or text(document, "dtype") or "bfloat16",
        plain_attention_positions=_plain_attention_positions(document),
    )


def config_notes(document: Mapping[str, Any]) -> tuple[str, ...]:
    """What a user should know of a config that ``parse_config`` takes: settings without effect, lengths that differ."""
    config, notes = parse_config(document), list(rope_notes(document))
    if config.plain_attention_positions is not None:
        notes.append(
            "config.json asks for dual chunk attention, which neither transformers nor any target computes: the "
            f"context ends at {config.context_length:,} tokens, as far as the model goes without it"
        )
    elif config.context_length > config.max_position_embeddings:
        notes.append(
            f"YaRN extends the context to {config.context_length:,} tokens, which is stated instead of "
            f"max_position_embeddings {config.max_position_embeddings:,}"
        )
    return tuple(notes)


def stated_quantization(document: Mapping[str, Any]) -> str | None:
    """The method that ``quantization_config`` names, or None if there is no such field."""
    stated = document.get("quantization_config")
    if not stated:
        return None
    return str(stated.get("quant_method", "unknown")) if isinstance(stated, Mapping) else "unknown"


def _refuse_other_architectures(document: Mapping[str, Any]) -> None:
    model_type = document.get("model_type")
    if model_type not in MODEL_TYPES:
        reason = OTHER_ARCHITECTURES.get(str(model_type), "it is another architecture")
        raise UnsupportedModelError(
            f"config.json: model_type {shown(model_type)} is not supported ({reason}); qwen3 and qwen3_moe are"
        )
    names = document.get("architectures") or []
    if not isinstance(names, list):
        raise wrong_type("architectures", names, "a list of names")
    for name in names:
        if not str(name).endswith("ForCausalLM"):
            raise UnsupportedModelError(
                f"config.json: architecture {shown(name)} has no language-model head; "
                "Qwen3ForCausalLM and Qwen3MoeForCausalLM are supported"
            )


def _refuse_unsupported_settings(document: Mapping[str, Any]) -> None:
    if document.get("use_sliding_window"):
        raise UnsupportedModelError(
            "config.json: use_sliding_window is true; sliding-window attention is not supported, and no "
            "published Qwen3 uses it"
        )
    if document.get("attention_bias"):
        raise UnsupportedModelError(
            "config.json: attention_bias is true; biases on q, k, v and o are not supported, and no published "
            "Qwen3 has them"
        )
    if document.get("hidden_act", "silu") != "silu":
        raise UnsupportedModelError(f"config.json: hidden_act {shown(document['hidden_act'])}; only silu is supported")


def _plain_attention_positions(document: Mapping[str, Any]) -> int | None:
    """The length up to which dual chunk attention is plain attention; None for a config without it."""
    name = "dual_chunk_attention_config"
    stated = document.get(name)
    if not stated:
        return None
    if not isinstance(stated, Mapping):
        raise wrong_type(name, stated, "an object")
    positions = integer(
        stated, "original_max_position_embeddings", default=integer(document, "max_position_embeddings")
    )
    if positions <= 0:
        raise UnsupportedModelError(f"config.json: {name} original_max_position_embeddings is {positions}; correct it")
    return positions


def _head_dim(document: Mapping[str, Any]) -> int:
    """The stated head_dim, or the default of transformers' Qwen3Config (128) and Qwen3MoeConfig (a quotient)."""
    if document.get("head_dim") is not None:
        return integer(document, "head_dim")
    if document["model_type"] == "qwen3":
        return 128
    heads = integer(document, "num_attention_heads")
    return integer(document, "hidden_size") // heads if heads > 0 else 0


def _num_experts(document: Mapping[str, Any]) -> int:
    return integer(document, "num_experts" if "num_experts" in document else "num_local_experts")
