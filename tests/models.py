"""Tiny random Qwen3 checkpoints, written as real folders: the shapes that catch bugs.

Heads times head_dim differ from hidden, several heads share a key head, and every norm weight is random
(Hugging Face initialises them to ones, and then a runtime that swaps q_norm and k_norm passes).  Values depend
on the seed and the name of the weight alone, so two variants that differ in storage hold the same model.
All of them carry the demo's tokenizer, and a vocabulary that fits it.

    write_model(folder, "moe_fused")
    write_model(folder, "tied", num_hidden_layers=1)
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from qwen3_export.config import parse_config
from qwen3_export.graph import Kind, Role, expected_weights, module_name

__all__ = [
    "COLD_EXPERT",
    "DEMO",
    "DENSE",
    "KNOWN_TOKENS",
    "MOE",
    "TINY",
    "VARIANTS",
    "Variant",
    "begin_with",
    "flag_tokens",
    "set_in",
    "write_model",
]

DEMO = Path(__file__).parents[1] / "qwen3_export" / "data" / "demo"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
KNOWN_TOKENS = 8182  # what the demo's tokenizer knows; the rest of its 8192 rows are padding

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
EMBEDDING_STD = 0.05  # small enough that an eps of 1e-5 instead of 1e-6 moves the logits

COLD_EXPERT = 3  # the one that "moe_cold" never routes to
ALWAYS = 0.2  # what makes it cold: a channel that never changes, and is small enough to leave the others theirs

DENSE: Mapping[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 8156,
    "eos_token_id": 8158,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": 2048,
    "max_window_layers": 2,
    "model_type": "qwen3",
    "num_attention_heads": 8,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 8192,
}

MOE: Mapping[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "tie_word_embeddings": False,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}

# Narrow layers, for tests that open an artifact hundreds of times.
TINY: Mapping[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "head_dim": 32,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}

YARN: Mapping[str, Any] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs from the dense, tied, bf16 model in one file; a config value of ``...`` removes the key."""

    config: Mapping[str, Any] = field(default_factory=dict)
    shards: int = 1
    fused_experts: bool = False
    duplicate_head: bool = False
    cold_expert: bool = False
    added_tokens: tuple[str, ...] = ()


VARIANTS: Mapping[str, Variant] = {
    "tied": Variant(),
    "untied": Variant(config={"tie_word_embeddings": False}),
    "duplicate_head": Variant(duplicate_head=True),
    "sharded": Variant(shards=3),
    "f16": Variant(config={"torch_dtype": "float16"}),
    "f32": Variant(config={"torch_dtype": "float32"}),
    "new_spelling": Variant(
        config={
            "rope_theta": ...,
            "rope_scaling": ...,
            "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
            "torch_dtype": ...,
            "dtype": "bfloat16",
        }
    ),
    "yarn": Variant(config={"rope_scaling": YARN}),
    "yarn_new_spelling": Variant(
        config={"rope_theta": ..., "rope_scaling": ..., "rope_parameters": {**YARN, "rope_theta": 1000000}}
    ),
    # Rows that are multiples of 32 and not of 256.
    "rows_of_320": Variant(
        config={"hidden_size": 320, "intermediate_size": 416, "num_attention_heads": 6, "tie_word_embeddings": False}
    ),
    # Rows that are multiples of nothing that a block format likes.
    "rows_of_72": Variant(
        config={"hidden_size": 72, "intermediate_size": 200, "num_attention_heads": 6, "head_dim": 20}
    ),
    "added_tokens": Variant(config={"vocab_size": KNOWN_TOKENS + 3}, added_tokens=("<|plan|>", "<note>", "</note>")),
    "resized_vocabulary": Variant(config={"vocab_size": 8320}),
    "moe": Variant(config=MOE),
    "moe_fused": Variant(config=MOE, fused_experts=True),
    "moe_sharded": Variant(config=MOE, shards=2),
    "moe_shares_as_they_are": Variant(config={**MOE, "norm_topk_prob": False}),
    "moe_with_dense_layers": Variant(
        config={**MOE, "num_hidden_layers": 4, "decoder_sparse_step": 2, "mlp_only_layers": [1]}
    ),
    "moe_cold": Variant(config=MOE, cold_expert=True),
}


def write_model(folder: Path, name: str = "tied", *, seed: int = 0, **overrides: Any) -> Path:
    """Write one of ``VARIANTS``, with config values overridden; returns the folder."""
    variant = VARIANTS[name]
    document = {key: value for key, value in {**DENSE, **variant.config, **overrides}.items() if value is not ...}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document, indent=2), encoding="utf-8")
    for file in TOKENIZER_FILES:
        shutil.copyfile(DEMO / file, folder / file)
    _add_tokens(folder, variant.added_tokens)
    values = _random_weights(document, seed)
    if variant.cold_expert:
        values = _with_cold_expert(values)
    dtype = DTYPES[document.get("torch_dtype") or document["dtype"]]
    _write_tensors(folder, _stored_tensors(values, variant, dtype), shards=variant.shards)
    return folder


def _random_weights(document: Mapping[str, Any], seed: int) -> dict[Role, Tensor]:
    shapes = expected_weights(parse_config(document))
    return {role: torch.from_numpy(_random_weight(role, shape, seed)) for role, shape in shapes.items()}


def _random_weight(role: Role, shape: tuple[int, ...], seed: int) -> np.ndarray:
    random = np.random.default_rng([seed, zlib.crc32(module_name(role).encode())])
    if role.is_norm:
        return random.uniform(0.5, 1.5, shape).astype(np.float32)
    std = EMBEDDING_STD if role.kind in (Kind.EMBED_TOKENS, Kind.LM_HEAD) else shape[-1] ** -0.5
    return random.normal(0.0, std, shape).astype(np.float32)


def _with_cold_expert(values: Mapping[Role, Tensor]) -> dict[Role, Tensor]:
    """Channel 0 of the residual stream is the same for every token, and only one router row sees it."""
    chilled = {role: tensor.clone() for role, tensor in values.items()}
    for role, tensor in chilled.items():
        if role.kind is Kind.EMBED_TOKENS:
            tensor[:, 0] = ALWAYS
        elif role.kind in (Kind.O_PROJ, Kind.DOWN_PROJ, Kind.INPUT_LAYERNORM):
            tensor[0] = 0.0
        elif role.kind in (Kind.GATE_PROJ, Kind.UP_PROJ):
            tensor[:, 0] = 0.0
        elif role.kind is Kind.ROUTER:
            tensor[:, 0] = 0.0
            tensor[COLD_EXPERT, 0] = -1000.0
    return chilled


def _stored_tensors(values: Mapping[Role, Tensor], variant: Variant, dtype: torch.dtype) -> dict[str, Tensor]:
    named = {f"{module_name(role)}.weight": tensor.to(dtype) for role, tensor in values.items()}
    if variant.fused_experts:
        named = _fuse_experts(named)
    if variant.duplicate_head:
        named["lm_head.weight"] = named["model.embed_tokens.weight"].clone()
    return named


def _fuse_experts(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Experts stacked: ``gate_up_proj`` [E, 2 * I, D] with the gate first, ``down_proj`` [E, D, I]."""
    kept = {name: tensor for name, tensor in named.items() if ".experts." not in name}
    for mlp in sorted({name.partition(".experts.")[0] for name in named.keys() - kept.keys()}):
        count = sum(name.startswith(f"{mlp}.experts.") for name in named) // 3
        gate, up, down = (
            torch.stack([named[f"{mlp}.experts.{expert}.{part}.weight"] for expert in range(count)])
            for part in ("gate_proj", "up_proj", "down_proj")
        )
        kept[f"{mlp}.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
        kept[f"{mlp}.experts.down_proj"] = down
    return kept


def _write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, shards: int) -> None:
    if shards == 1:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = dict(list(tensors.items())[shard::shards])
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _add_tokens(folder: Path, contents: tuple[str, ...]) -> None:
    """Append tokens as transformers does when a fine-tune adds some; those in ``<|…|>`` are special."""
    if not contents:
        return
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    for token_id, content in enumerate(contents, start=KNOWN_TOKENS):
        flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
        token = {"content": content, **flags, "special": content.startswith("<|")}
        tokenizer["added_tokens"].append({"id": token_id, **token})
        settings["added_tokens_decoder"][str(token_id)] = token
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def flag_tokens(folder: Path, tokens: Mapping[str, Mapping[str, bool]]) -> None:
    """Append tokens with these flags (``lstrip`` and so on); the rest of the flags is False."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    none = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    for token_id, (content, flags) in enumerate(tokens.items(), start=KNOWN_TOKENS):
        token = {"content": content, **none, **flags}
        tokenizer["added_tokens"].append({"id": token_id, **token})
        settings["added_tokens_decoder"][str(token_id)] = token
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def begin_with(folder: Path, content: str, token_id: int) -> None:
    """Let the tokenizer put a token before plain text, as its post-processor says."""
    document = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    mark, text = {"SpecialToken": {"id": content, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    document["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [mark, text],
        "pair": [mark, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {content: {"id": content, "ids": [token_id], "tokens": [content]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def set_in(path: Path, **changes: Any) -> None:
    """Change fields of a JSON file; ``...`` removes one."""
    document = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in document.items() if value is not ...}
    path.write_text(json.dumps(kept, ensure_ascii=False), encoding="utf-8")
