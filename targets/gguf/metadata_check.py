"""Compare a GGUF file's metadata with the checkpoint, field by field.

Only what llama.cpp reads is compared, and it must be exact. A missing key counts as the value that llama.cpp's loader
takes for it, so that files of other writers are judged by what they do. Expected values come from the checkpoint's
config and tokenizer files, not from this toolkit's writer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph
from qwen3_export.targets.gguf.expected_tokens import expected_tokens

__all__ = ["MetadataDifference", "metadata_differences"]

# Loader defaults of llama.cpp that matter (llama-model.cpp, llama_model_base::load_hparams).
ROPE_BASE_DEFAULT = 10_000.0

# With a wrong value in one of these, llama.cpp still runs. A wrong value in any other may abort its process.
HARMLESS_TO_LOAD = frozenset(
    {"context_length", "attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.type",
     "rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast",
     "rope.scaling.yarn_beta_slow", "rope.scaling.attn_factor"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class MetadataDifference:
    """A difference as one sentence, and whether llama.cpp can still run the file."""

    text: str
    is_runnable: bool

    def __str__(self) -> str:
        return self.text


def metadata_differences(metadata: Mapping[str, Any], graph: Graph, tokenizer: Tokenizer) -> list[MetadataDifference]:
    """Every field in which the file differs from the checkpoint; none for a correct file."""
    config = graph.config
    arch = "qwen3moe" if config.is_moe else "qwen3"
    if metadata.get("general.architecture") != arch:
        text = f"general.architecture is {metadata.get('general.architecture')!r}, the checkpoint is {arch!r}"
        return [MetadataDifference(text, is_runnable=False)]
    found = []
    for field, (expected, default) in _hyperparameters(metadata, config, arch).items():
        stored = metadata.get(f"{arch}.{field}", default)
        if not _is_same(stored, expected):
            text = f"{arch}.{field} is {_say(stored)}, the checkpoint has {_say(expected)}"
            found.append(MetadataDifference(text, is_runnable=field in HARMLESS_TO_LOAD))
    for key, expected in _tokenizer_fields(tokenizer, config.vocab_size).items():
        difference = _difference(key, metadata.get(key), expected)
        if difference is not None:
            found.append(MetadataDifference(difference, is_runnable=key != "tokenizer.ggml.tokens"))
    return found


def _hyperparameters(metadata: Mapping[str, Any], config: Qwen3Config, arch: str) -> dict[str, tuple[object, object]]:
    """Field -> (expected value, value that the loader takes for a missing key)."""
    heads = metadata.get(f"{arch}.attention.head_count")
    width = metadata.get(f"{arch}.embedding_length")
    head_default = width // heads if isinstance(heads, int) and isinstance(width, int) and heads else None
    key_length = metadata.get(f"{arch}.attention.key_length", head_default)
    fields: dict[str, tuple[object, object]] = {
        "block_count": (config.num_hidden_layers, None),
        "context_length": (_context_length(metadata.get(f"{arch}.context_length"), config), None),
        "embedding_length": (config.hidden_size, None),
        "feed_forward_length": (config.intermediate_size, None),
        "attention.head_count": (config.num_attention_heads, None),
        "attention.head_count_kv": (config.num_key_value_heads, heads),
        "attention.key_length": (config.head_dim, head_default),
        "attention.value_length": (config.head_dim, head_default),
        "attention.layer_norm_rms_epsilon": (config.rms_norm_eps, None),
        "rope.dimension_count": (config.head_dim, key_length),
        "rope.freq_base": (config.rope_theta, ROPE_BASE_DEFAULT),
        "attention.sliding_window": (0, 0),
        "expert_count": (config.num_experts, 0),
        "expert_used_count": (config.num_experts_per_tok, 0),
    }
    if config.is_moe:
        used = metadata.get(f"{arch}.expert_used_count")
        wide = metadata.get(f"{arch}.feed_forward_length")
        fallback = wide // used if isinstance(used, int) and isinstance(wide, int) and used else None
        fields["expert_feed_forward_length"] = (config.moe_intermediate_size, fallback)
    return fields | _rope_scaling(metadata, config, arch)


def _context_length(stored: object, config: Qwen3Config) -> int:
    """The model's context length; or max_position_embeddings, which is what llama.cpp's converter writes."""
    return config.max_position_embeddings if stored == config.max_position_embeddings else config.context_length


def _rope_scaling(metadata: Mapping[str, Any], config: Qwen3Config, arch: str) -> dict[str, tuple[object, object]]:
    yarn = config.rope_scaling
    fields: dict[str, tuple[object, object]] = {
        "rope.scaling.type": ("yarn" if yarn else "none", "none"),
        "rope.scaling.factor": (yarn.factor if yarn else 1.0, 1.0),
        "rope.scaling.attn_factor": (yarn.attention_factor / yarn.paper_attention_factor if yarn else 1.0, 1.0),
    }
    if yarn is not None:
        fields |= {
            "rope.scaling.original_context_length": (
                yarn.original_max_position_embeddings,
                metadata.get(f"{arch}.context_length"),
            ),
            "rope.scaling.yarn_beta_fast": (yarn.beta_fast, 32.0),
            "rope.scaling.yarn_beta_slow": (yarn.beta_slow, 1.0),
        }
    return fields


def _tokenizer_fields(tokenizer: Tokenizer, vocab_size: int) -> dict[str, object]:
    tokens, types = expected_tokens(tokenizer.folder, vocab_size)
    generation = tokenizer.generation
    fields: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [" ".join(merge) for merge in tokenizer.merges],
        "tokenizer.ggml.eos_token_id": generation.eos_token_ids[0],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    if generation.bos_token_id is not None:
        fields["tokenizer.ggml.bos_token_id"] = generation.bos_token_id
    if generation.pad_token_id is not None:
        fields["tokenizer.ggml.padding_token_id"] = generation.pad_token_id
    return fields


def _difference(key: str, stored: object, expected: object) -> str | None:
    if key.endswith(("add_bos_token", "add_eos_token")):
        stored = bool(stored)  # missing means False
    if isinstance(expected, list) and isinstance(stored, list):
        return _list_difference(key, stored, expected)
    if stored == expected:
        return None
    return f"{key} is {_say(stored)}, the checkpoint has {_say(expected)}"


def _list_difference(key: str, stored: Sequence[object], expected: Sequence[object]) -> str | None:
    if len(stored) != len(expected):
        return f"{key} has {len(stored)} entries, the checkpoint {len(expected)}"
    differing = [i for i, (a, b) in enumerate(zip(stored, expected, strict=True)) if a != b]
    if not differing:
        return None
    first = differing[0]
    return (
        f"{key}: {len(differing)} of {len(expected)} entries differ, first {first}: {_say(stored[first])}, "
        f"the checkpoint has {_say(expected[first])}"
    )


def _is_same(stored: object, expected: object) -> bool:
    """Whether two values are equal; floats are compared as float32, which is how a file stores them."""
    if isinstance(stored, (int, float)) and isinstance(expected, float):
        return bool(np.float32(stored) == np.float32(expected))
    if isinstance(stored, list):  # one value per layer
        return all(entry == expected for entry in stored)
    return stored == expected


def _say(value: object) -> str:
    if value is None:
        return "missing"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
