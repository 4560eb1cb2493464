"""Write ``genai_config.json``, which onnxruntime-genai reads beside the graph."""

from __future__ import annotations

from typing import Any

from qwen3_export.checkpoint.model import Model

__all__ = ["build_genai_config"]


def build_genai_config(model: Model, *, graph_file: str, context_length: int) -> dict[str, Any]:
    """Build the document, with the keys that onnxruntime-genai's config.cpp reads.

    ``context_length`` is also how long an app's text may be that sets no length: the KV cache is allocated for it.
    """
    config, generation = model.graph.config, model.tokenizer.generation
    eos = list(generation.eos_token_ids)
    return {
        "model": {
            "type": "qwen3",
            "bos_token_id": model.tokenizer.bos_token_id,
            "eos_token_id": eos,
            "pad_token_id": eos[0] if generation.pad_token_id is None else generation.pad_token_id,
            "context_length": context_length,
            "vocab_size": config.vocab_size,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": graph_file,
                "head_size": config.head_dim,
                "hidden_size": config.hidden_size,
                "num_attention_heads": config.num_attention_heads,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": config.num_key_value_heads,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {
            "do_sample": bool(generation.do_sample),
            "temperature": _or(generation.temperature, 1.0),
            "top_k": _or(generation.top_k, 50),
            "top_p": _or(generation.top_p, 1.0),
            "max_length": context_length,
            "num_beams": 1,
            "repetition_penalty": 1.0,
            "past_present_share_buffer": True,
        },
    }


def _or(stated: float | None, otherwise: float) -> float:
    return otherwise if stated is None else stated
