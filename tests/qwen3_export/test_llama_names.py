"""llama.cpp's names and the roles they stand for are inverse, and no other name has a role."""

from __future__ import annotations

from dataclasses import replace

import pytest
from models import DENSE, MOE

from qwen3_export.config import parse_config
from qwen3_export.graph import Kind, Role, expected_weights
from qwen3_export.llama_names import is_stacked, parse_tensor_name, tensor_name


@pytest.mark.parametrize("document", [{**DENSE, "num_hidden_layers": 11}, {**DENSE, **MOE}], ids=["dense", "moe"])
def test_names_and_roles_are_inverse(document: dict[str, object]) -> None:
    for role in expected_weights(parse_config(document)):
        name = tensor_name(role)
        assert parse_tensor_name(name) == replace(role, expert=None)
        assert is_stacked(name) == (role.expert is not None)


def test_experts_of_a_layer_share_a_name() -> None:
    assert (
        tensor_name(Role(Kind.UP_PROJ, 10, 7)) == tensor_name(Role(Kind.UP_PROJ, 10, 0)) == "blk.10.ffn_up_exps.weight"
    )
    assert tensor_name(Role(Kind.UP_PROJ, 10)) == "blk.10.ffn_up.weight"


@pytest.mark.parametrize(
    "name",
    ["blk.0.attn_v", "attn_v.weight", "blk.0.output.weight", "blk.01.attn_v.weight", "blk.0.attn_v.bias",
     "token_embd.weight.weight", "blk.0.ffn_gate_inp_exps.weight", "ffn_up_exps.weight", "rope_freqs.weight"],
)  # fmt: skip
def test_foreign_names_have_no_role(name: str) -> None:
    assert parse_tensor_name(name) is None
    assert not is_stacked(name)
