"""What a Qwen3 model is: the fields of ``config.json`` that change what it computes.

Fields are spelled as in ``config.json``, so loading is a filter and not a translation.  Two spellings of some
fields exist (``rope_theta`` and ``rope_scaling`` beside ``rope_parameters``; ``torch_dtype`` beside ``dtype``);
both are read here and nowhere else.  Whatever would change the result and is not understood is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_export.errors import UnsupportedModelError

__all__ = ["Qwen3Config", "YarnScaling", "parse_config"]

MODEL_TYPES = ("qwen3", "qwen3_moe")

# Models that carry "Qwen3" in their name and are another graph: the reason is part of the answer.
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
class YarnScaling:
    """YaRN context extension (arXiv 2309.00071), as ``rope_scaling`` of ``config.json`` states it."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def attention_factor(self) -> float:
        """What cos and sin are multiplied by: 0.1 ln(factor) + 1 (section 3.4 of the paper)."""
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1.0 else 1.0


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
    max_position_embeddings: int
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

    def __post_init__(self) -> None:
        positive = (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        )
        for field in positive:
            if getattr(self, field) <= 0:
                raise UnsupportedModelError(f"config.json: {field} is {getattr(self, field)}; it must be positive")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UnsupportedModelError(
                f"config.json: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}; the file contradicts itself"
            )
        if self.head_dim % 2:
            raise UnsupportedModelError(f"config.json: head_dim {self.head_dim} is odd; RoPE rotates pairs")
        if self.is_moe and not 0 < self.num_experts_per_tok <= self.num_experts:
            raise UnsupportedModelError(
                f"config.json: num_experts_per_tok {self.num_experts_per_tok} is not between 1 and "
                f"num_experts {self.num_experts}"
            )

    @property
    def is_moe(self) -> bool:
        return self.model_type == "qwen3_moe"

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

    Raises UnsupportedModelError for another architecture, and for each setting that would change what the
    model computes and that this toolkit does not represent (sliding windows, biases, foreign RoPE scaling).
    """
    _refuse_other_architectures(document)
    _refuse_unsupported_settings(document)
    is_moe = document["model_type"] == "qwen3_moe"
    rope = _rope_parameters(document)
    try:
        return Qwen3Config(
            model_type=document["model_type"],
            vocab_size=int(document["vocab_size"]),
            hidden_size=int(document["hidden_size"]),
            intermediate_size=int(document["intermediate_size"]),
            num_hidden_layers=int(document["num_hidden_layers"]),
            num_attention_heads=int(document["num_attention_heads"]),
            num_key_value_heads=int(document["num_key_value_heads"]),
            head_dim=_head_dim(document),
            max_position_embeddings=int(document["max_position_embeddings"]),
            rms_norm_eps=float(document["rms_norm_eps"]),
            rope_theta=float(rope["rope_theta"]),
            tie_word_embeddings=bool(document.get("tie_word_embeddings", False)),
            rope_scaling=_yarn_scaling(rope, document),
            num_experts=_num_experts(document) if is_moe else 0,
            num_experts_per_tok=int(document["num_experts_per_tok"]) if is_moe else 0,
            moe_intermediate_size=int(document["moe_intermediate_size"]) if is_moe else 0,
            norm_topk_prob=bool(document.get("norm_topk_prob", False)) if is_moe else False,
            decoder_sparse_step=int(document.get("decoder_sparse_step", 1)) if is_moe else 1,
            mlp_only_layers=tuple(document.get("mlp_only_layers") or ()) if is_moe else (),
            torch_dtype=str(document.get("torch_dtype") or document.get("dtype") or "bfloat16"),
        )
    except KeyError as missing:
        raise UnsupportedModelError(
            f"config.json: {missing.args[0]} is missing; take the config.json of the original checkpoint"
        ) from missing
    except (TypeError, ValueError) as wrong:
        raise UnsupportedModelError(
            f"config.json: a number is expected where there is none ({wrong}); take the config.json of the "
            "original checkpoint"
        ) from wrong


def _refuse_other_architectures(document: Mapping[str, Any]) -> None:
    model_type = document.get("model_type")
    if model_type not in MODEL_TYPES:
        reason = OTHER_ARCHITECTURES.get(str(model_type), "it is another architecture")
        raise UnsupportedModelError(
            f"config.json: model_type {model_type!r} is not supported ({reason}); qwen3 and qwen3_moe are"
        )
    for name in document.get("architectures") or ():
        if not str(name).endswith("ForCausalLM"):
            raise UnsupportedModelError(
                f"config.json: architecture {name} has no language-model head; "
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
        raise UnsupportedModelError(f"config.json: hidden_act {document['hidden_act']!r}; only silu is supported")
    quantization = document.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else "unknown"
        raise UnsupportedModelError(
            f"config.json: the checkpoint is already quantized ({method}); export from the original bf16 "
            "checkpoint instead"
        )


def _head_dim(document: Mapping[str, Any]) -> int:
    """The stated head_dim, or the default of transformers' Qwen3Config (128) and Qwen3MoeConfig (a quotient)."""
    if document.get("head_dim"):
        return int(document["head_dim"])
    if document["model_type"] == "qwen3":
        return 128
    return int(document["hidden_size"]) // int(document["num_attention_heads"])


def _num_experts(document: Mapping[str, Any]) -> int:
    return int(document["num_experts"] if "num_experts" in document else document["num_local_experts"])


def _rope_parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """One mapping with ``rope_theta`` and, if any, the scaling keys, from either spelling."""
    scaling = document.get("rope_parameters") or document.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise UnsupportedModelError('config.json: rope_scaling is not an object; write null or {"rope_type": …}')
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("config.json: partial_rotary_factor is not 1; Qwen3 rotates whole heads")
    theta = scaling.get("rope_theta", document.get("rope_theta"))
    if theta is None:
        raise UnsupportedModelError(
            "config.json: rope_theta is missing; take the config.json of the original checkpoint"
        )
    return {**scaling, "rope_theta": theta}


def _yarn_scaling(rope: Mapping[str, Any], document: Mapping[str, Any]) -> YarnScaling | None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type != "yarn":
        raise UnsupportedModelError(f"config.json: rope_scaling type {rope_type!r} is not supported; yarn, or none, is")
    known = {
        "rope_type",
        "type",
        "rope_theta",
        "factor",
        "original_max_position_embeddings",
        "beta_fast",
        "beta_slow",
        "attention_factor",
        "truncate",
        "partial_rotary_factor",
    }
    for key in rope:
        if key not in known and rope[key] is not None:
            raise UnsupportedModelError(f"config.json: rope_scaling has {key!r}, whose effect is not supported")
    if rope.get("truncate") is False:
        raise UnsupportedModelError("config.json: rope_scaling truncate false is not supported; leave it out")
    yarn = YarnScaling(
        factor=float(rope["factor"]),
        original_max_position_embeddings=int(
            rope.get("original_max_position_embeddings") or document["max_position_embeddings"]
        ),
        beta_fast=float(rope.get("beta_fast") or 32.0),
        beta_slow=float(rope.get("beta_slow") or 1.0),
    )
    stated = rope.get("attention_factor")
    if stated is not None and not math.isclose(float(stated), yarn.attention_factor, rel_tol=1e-6):
        raise UnsupportedModelError(
            f"config.json: rope_scaling attention_factor {stated} differs from the {yarn.attention_factor:.6f} "
            "that runtimes derive from the factor; leave it out"
        )
    return yarn
