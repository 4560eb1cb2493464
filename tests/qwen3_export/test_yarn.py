"""YaRN as configs state it: frequencies, factor and lengths are those of transformers, and what it ignores is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import DENSE, YARN

from qwen3_export.config import config_notes, parse_config
from qwen3_export.rope import inverse_frequencies, rotation

SCALINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention_factor": {"attention_factor": 1.3},
    "attn_factor": {"attn_factor": 0.5},
    "mscale alone": {"mscale": 0.7},
    "both mscales": {"mscale": 0.7, "mscale_all_dim": 1.2},
    "equal mscales": {"mscale": 1.0, "mscale_all_dim": 1.0},
    "mscales and attention_factor": {"mscale": 0.7, "mscale_all_dim": 1.2, "attention_factor": 1.3},
    "not truncated": {"truncate": False},
    "betas": {"beta_fast": 20, "beta_slow": 2},
    "betas of zero": {"beta_fast": 0, "beta_slow": None},
    "factor below one": {"factor": 0.5},
    "factor null": {"factor": None},
    "no original length": {"original_max_position_embeddings": ...},
    "foreign keys": {"foo": 3, "extrapolation_factor": 1.0},
}
LONG: dict[str, Any] = {**YARN, "original_max_position_embeddings": 32768}
TOP = {"nothing else": {}, "original length in the config": {"original_max_position_embeddings": 700}}


def document(scaling: dict[str, Any], **top: Any) -> dict[str, Any]:
    stated = {key: value for key, value in {**YARN, **scaling}.items() if value is not ...}
    return {**DENSE, **top, "rope_scaling": stated}


@pytest.mark.parametrize("top", TOP)
@pytest.mark.parametrize("scaling", SCALINGS)
def test_frequencies_and_factor_are_those_of_transformers(scaling: str, top: str) -> None:
    pytest.importorskip("transformers")
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = parse_config(document(SCALINGS[scaling], **TOP[top]))
    theirs = Qwen3Config(**document(SCALINGS[scaling], **TOP[top]))
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    torch.testing.assert_close(inverse_frequencies(config), frequencies, rtol=0, atol=0)
    assert rotation(config, start=0, count=1).cos[0, 0].item() == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"max_position_embeddings": 40960}, 40960),
        ({"max_position_embeddings": 40960, "rope_scaling": LONG}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": LONG}, 131072),
        ({"max_position_embeddings": 262144, "rope_scaling": LONG}, 262144),
        ({"max_position_embeddings": 40960, "rope_scaling": {"type": "yarn", "factor": 2.5}}, 102400),
        ({"max_position_embeddings": 1010000, "dual_chunk_attention_config": {"chunk_size": 262144,
          "local_size": 8192, "original_max_position_embeddings": 262144}}, 262144),
        ({"max_position_embeddings": 1010000, "dual_chunk_attention_config": {"chunk_size": 262144}}, 1010000),
    ],
)  # fmt: skip
def test_context_length(changes: dict[str, Any], length: int) -> None:
    config = parse_config({**DENSE, **changes})
    assert config.context_length == length
    notes = config_notes({**DENSE, **changes})
    differs = length != changes["max_position_embeddings"] or "dual_chunk_attention_config" in changes
    assert [f"{length:,}" in note for note in notes] == [True] * differs


def test_rope_scaling_beside_rope_parameters_is_taken_as_in_transformers() -> None:
    """YaRN that is switched on as the model cards say, in a config that today's transformers saved."""
    stated = document({}, rope_parameters={"rope_type": "default", "rope_theta": 5e6}, rope_theta=1e6)
    config = parse_config(stated)
    assert config.rope_scaling is not None
    assert config.rope_theta == 1e6
    assert "rope_scaling is taken" in config_notes(stated)[0]
    pytest.importorskip("transformers")
    from transformers import Qwen3Config

    theirs = Qwen3Config(**document({}, rope_parameters={"rope_type": "default", "rope_theta": 5e6}, rope_theta=1e6))
    assert (theirs.rope_parameters["rope_type"], theirs.rope_parameters["rope_theta"]) == ("yarn", 1e6)


def test_what_transformers_does_not_read_is_said() -> None:
    (note,) = config_notes(document({"attn_factor": 0.8782488562869419}))
    assert "attn_factor 0.878249" in note
    assert '"attention_factor": 1 ' in note
    (note,) = config_notes(document({"extrapolation_factor": 1.0}))
    assert "extrapolation_factor" in note
    stated = {**DENSE, "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 512}}
    assert parse_config(stated).rope_scaling is None
    assert "no effect" in config_notes(stated)[0]


def test_a_plain_config_needs_no_note() -> None:
    assert config_notes(DENSE) == ()
    assert config_notes(document({})) == ()
