"""The hyperparameters of a Qwen3 model: the fields of ``config.json`` that change what it computes.

Fields have the names that they have in ``config.json``. Some have two spellings there (``rope_theta`` and
``rope_scaling``, or both in ``rope_parameters``; ``torch_dtype`` or ``dtype``); both are read, here and nowhere else. A
setting that would change the result and is not supported is refused by name.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qwen3_export.errors import UnsupportedModelError
from qwen3_export.files.shown import shown

__all__ = ["Qwen3Config", "YarnScaling", "parse_config"]

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
class YarnScaling:
    """YaRN, which extends the context (arXiv 2309.00071), with the fields of ``rope_scaling`` in ``config.json``."""

    factor: float
    original_max_position_embeddings: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    def __post_init__(self) -> None:
        for field in ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"):
            if not 0 < getattr(self, field) < math.inf:
                raise UnsupportedModelError(
                    f"config.json: rope_scaling {field} is {getattr(self, field)}; it must be positive"
                )

    @property
    def attention_factor(self) -> float:
        """The factor on cos and sin: 0.1 ln(factor) + 1 (section 3.4 of the paper)."""
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
    rope = _rope_parameters(document)
    return Qwen3Config(
        model_type=document["model_type"],
        vocab_size=_integer(document, "vocab_size"),
        hidden_size=_integer(document, "hidden_size"),
        intermediate_size=_integer(document, "intermediate_size"),
        num_hidden_layers=_integer(document, "num_hidden_layers"),
        num_attention_heads=_integer(document, "num_attention_heads"),
        num_key_value_heads=_integer(document, "num_key_value_heads"),
        head_dim=_head_dim(document),
        max_position_embeddings=_integer(document, "max_position_embeddings"),
        rms_norm_eps=_number(document, "rms_norm_eps"),
        rope_theta=_number(rope, "rope_theta"),
        tie_word_embeddings=_boolean(document, "tie_word_embeddings"),
        rope_scaling=_yarn_scaling(rope, document),
        num_experts=_num_experts(document) if is_moe else 0,
        num_experts_per_tok=_integer(document, "num_experts_per_tok") if is_moe else 0,
        moe_intermediate_size=_integer(document, "moe_intermediate_size") if is_moe else 0,
        norm_topk_prob=_boolean(document, "norm_topk_prob") if is_moe else False,
        decoder_sparse_step=_integer(document, "decoder_sparse_step", default=1) if is_moe else 1,
        mlp_only_layers=_layers(document, "mlp_only_layers") if is_moe else (),
        torch_dtype=_text(document, "torch_dtype") or _text(document, "dtype") or "bfloat16",
    )


def _refuse_other_architectures(document: Mapping[str, Any]) -> None:
    model_type = document.get("model_type")
    if model_type not in MODEL_TYPES:
        reason = OTHER_ARCHITECTURES.get(str(model_type), "it is another architecture")
        raise UnsupportedModelError(
            f"config.json: model_type {shown(model_type)} is not supported ({reason}); qwen3 and qwen3_moe are"
        )
    names = document.get("architectures") or []
    if not isinstance(names, list):
        raise _wrong("architectures", names, "a list of names")
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
    quantization = document.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown") if isinstance(quantization, Mapping) else "unknown"
        raise UnsupportedModelError(
            f"config.json: the checkpoint is already quantized ({shown(method)}); export from the original bf16 "
            "checkpoint instead"
        )


def _head_dim(document: Mapping[str, Any]) -> int:
    """The stated head_dim, or the default of transformers' Qwen3Config (128) and Qwen3MoeConfig (a quotient)."""
    if document.get("head_dim") is not None:
        return _integer(document, "head_dim")
    if document["model_type"] == "qwen3":
        return 128
    heads = _integer(document, "num_attention_heads")
    return _integer(document, "hidden_size") // heads if heads > 0 else 0


def _num_experts(document: Mapping[str, Any]) -> int:
    return _integer(document, "num_experts" if "num_experts" in document else "num_local_experts")


def _rope_parameters(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """One mapping with ``rope_theta`` and, if any, the scaling keys, from either spelling."""
    scaling = document.get("rope_parameters") or document.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise UnsupportedModelError('config.json: rope_scaling is not an object; write null or {"rope_type": …}')
    if scaling.get("partial_rotary_factor", 1.0) != 1.0:
        raise UnsupportedModelError("config.json: partial_rotary_factor is not 1; Qwen3 rotates whole heads")
    return {**scaling, "rope_theta": scaling.get("rope_theta", document.get("rope_theta"))}


def _yarn_scaling(rope: Mapping[str, Any], document: Mapping[str, Any]) -> YarnScaling | None:
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return None
    if rope_type != "yarn":
        raise UnsupportedModelError(
            f"config.json: rope_scaling type {shown(rope_type)} is not supported; yarn, or none, is"
        )
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
            raise UnsupportedModelError(f"config.json: rope_scaling has {shown(key)}, whose effect is not supported")
    if rope.get("truncate") is False:
        raise UnsupportedModelError("config.json: rope_scaling truncate false is not supported; leave it out")
    stated_length = rope if rope.get("original_max_position_embeddings") is not None else document
    is_stated = stated_length is rope
    yarn = YarnScaling(
        factor=_number(rope, "factor"),
        original_max_position_embeddings=_integer(
            stated_length, "original_max_position_embeddings" if is_stated else "max_position_embeddings"
        ),
        beta_fast=_number(rope, "beta_fast", default=32.0),
        beta_slow=_number(rope, "beta_slow", default=1.0),
    )
    if rope.get("attention_factor") is not None:
        stated = _number(rope, "attention_factor")
        if not math.isclose(stated, yarn.attention_factor, rel_tol=1e-6):
            raise UnsupportedModelError(
                f"config.json: rope_scaling attention_factor {stated} differs from the {yarn.attention_factor:.6f} "
                "that runtimes derive from the factor; leave it out"
            )
    return yarn


def _integer(document: Mapping[str, Any], name: str, *, default: int | None = None) -> int:
    """A whole number, which some writers state as 32768.0."""
    value = _stated(document, name, default)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise _wrong(name, value, "a whole number")


def _number(document: Mapping[str, Any], name: str, *, default: float | None = None) -> float:
    value = _stated(document, name, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and abs(value) <= sys.float_info.max:  # neither NaN nor infinite, nor an integer beyond all floats
        return float(value)
    raise _wrong(name, value, "a number")


def _boolean(document: Mapping[str, Any], name: str) -> bool:
    """True or false; false where the field is missing or null."""
    value = document.get(name)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _wrong(name, value, "true or false")


def _text(document: Mapping[str, Any], name: str) -> str | None:
    value = document.get(name)
    if value is None or isinstance(value, str):
        return value
    raise _wrong(name, value, "text")


def _layers(document: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """A list of layer numbers; none where the field is missing or null."""
    value = document.get(name) or []
    if isinstance(value, list) and all(isinstance(layer, int) and not isinstance(layer, bool) for layer in value):
        return tuple(value)
    raise _wrong(name, value, "a list of layer numbers")


def _stated(document: Mapping[str, Any], name: str, default: float | None) -> Any:
    value = document.get(name)
    if value is None and default is None:
        raise UnsupportedModelError(f"config.json: {name} is missing; take the config.json of the original checkpoint")
    return default if value is None else value


def _wrong(name: str, value: object, wanted: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"config.json: {name} is {shown(value)}, where {wanted} belongs; take the config.json of the original "
        "checkpoint"
    )
