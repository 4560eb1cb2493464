"""config.json: every spelling read, everything that would change the result and is not understood refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from models import DENSE, MOE, YARN

from qwen3_export.config import parse_config
from qwen3_export.errors import UnsupportedModelError


def document(**overrides: Any) -> dict[str, Any]:
    return {key: value for key, value in {**DENSE, **overrides}.items() if value is not ...}


def test_demo_config_is_read_field_by_field(demo_folder) -> None:
    stated = json.loads((demo_folder / "config.json").read_text())
    config = parse_config(stated)
    for field in ("hidden_size", "head_dim", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size"):
        assert getattr(config, field) == stated[field]


def test_both_spellings_of_rope_agree() -> None:
    old = parse_config(document(rope_scaling=YARN))
    new = parse_config(document(rope_theta=..., rope_scaling=..., rope_parameters={**YARN, "rope_theta": 1000000}))
    assert old == new
    assert old.rope_scaling is not None
    assert math.isclose(old.rope_scaling.attention_factor, 0.1 * math.log(4.0) + 1.0)


def test_head_dim_is_not_hidden_over_heads() -> None:
    assert parse_config(document(head_dim=...)).head_dim == 128
    assert parse_config(document(**MOE, head_dim=...)).head_dim == 256 // 8


def test_sparse_layers_follow_step_and_exceptions() -> None:
    config = parse_config(document(**{**MOE, "decoder_sparse_step": 2, "mlp_only_layers": [3]}, num_hidden_layers=6))
    assert [config.is_sparse_layer(layer) for layer in range(6)] == [False, True, False, False, False, True]


def test_both_spellings_of_the_expert_count() -> None:
    moe = {**MOE, "num_experts": ..., "num_local_experts": 8}
    assert parse_config(document(**moe)).num_experts == 8


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"model_type": "qwen2"}, ["qwen2", "biases"]),
        ({"model_type": "qwen3_next"}, ["qwen3_next", "linear attention"]),
        ({"model_type": "qwen3_vl"}, ["qwen3_vl", "vision"]),
        ({"model_type": "llama"}, ["llama", "another architecture"]),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, ["no language-model head"]),
        ({"use_sliding_window": True}, ["use_sliding_window"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["dynamic"]),
        ({"rope_scaling": {**YARN, "attention_factor": 0}}, ["attention_factor"]),
        ({"rope_scaling": {**YARN, "attention_factor": "big"}}, ["attention_factor"]),
        ({"rope_scaling": {**YARN, "factor": 1e9}}, ["factor 1e+09"]),
        ({"rope_scaling": YARN, "rope_theta": ..., "rope_parameters": {"rope_theta": 1e6}}, ["rope_parameters"]),
        ({"dual_chunk_attention_config": [1]}, ["dual_chunk_attention_config"]),
        ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, ["partial_rotary_factor"]),
        ({"hidden_size": ...}, ["hidden_size", "missing"]),
        ({"rope_theta": ...}, ["rope_theta", "missing"]),
        ({"hidden_size": "wide"}, ["number"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads 3"]),
        ({"num_hidden_layers": 0}, ["num_hidden_layers"]),
        ({"head_dim": 63}, ["odd"]),
        ({**MOE, "num_experts_per_tok": 9}, ["num_experts_per_tok 9"]),
    ],
)  # fmt: skip
def test_refused_in_one_sentence_that_names_the_reason(overrides: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UnsupportedModelError) as refusal:
        parse_config(document(**overrides))
    message = str(refusal.value)
    assert "\n" not in message
    for word in words:
        assert word in message
