"""The tensors of a file: their names and order, stacked experts, and what llama.cpp cannot represent."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from types import MappingProxyType

import pytest

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.graph import Graph, Kind, Role, Weight, expected_weights, module_name
from qwen3_export.llama_names import tensor_name
from qwen3_export.targets.gguf.names import check_representable, gguf_tensors

DENSE = Qwen3Config(
    model_type="qwen3", vocab_size=96, hidden_size=64, intermediate_size=160, num_hidden_layers=11,
    num_attention_heads=6, num_key_value_heads=2, head_dim=32, max_position_embeddings=128,
    rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=False,
)  # fmt: skip
MOE = replace(
    DENSE, model_type="qwen3_moe", num_experts=12, num_experts_per_tok=2, moe_intermediate_size=48,
    norm_topk_prob=True, tie_word_embeddings=True,
)  # fmt: skip


@dataclass(frozen=True)
class Stand:
    """A weight with a shape and no values."""

    role: Role
    shape: tuple[int, ...]
    format: str = "BF16"

    @property
    def name(self) -> str:
        return module_name(self.role)

    def read(self, rows: slice = slice(None)) -> None:
        raise AssertionError(f"{self.name}[{rows}] was read")


def graph_of(config: Qwen3Config, *, shuffled: bool = False) -> Graph:
    weights = [Stand(role, shape) for role, shape in expected_weights(config).items()]
    if shuffled:
        random.Random(0).shuffle(weights)
    by_name: dict[str, Weight] = {weight.name: weight for weight in weights}  # type: ignore[misc]
    return Graph(name="stand-in", config=config, weights=MappingProxyType(by_name))


def test_names_are_those_of_the_official_table() -> None:
    gguf = pytest.importorskip("gguf")
    arch = {"qwen3": gguf.MODEL_ARCH.QWEN3, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE}
    for config in (DENSE, MOE):
        table = gguf.get_tensor_name_map(arch[config.model_type], config.num_hidden_layers)
        for role in expected_weights(config):
            if role.expert is None:  # the official table knows experts only after stacking
                official = table.get_name(module_name(role))
                assert f"{official}.weight" == tensor_name(role)
        known = {gguf.TENSOR_NAMES[key] for key in gguf.MODEL_TENSORS[arch[config.model_type]]}
        assert {tensor.name.removesuffix(".weight") for tensor in gguf_tensors(graph_of(config))} <= {
            name.format(bid=layer) for name in known for layer in range(config.num_hidden_layers)
        }


def test_file_order_is_embedding_blocks_norm_output() -> None:
    tensors = gguf_tensors(graph_of(DENSE, shuffled=True))
    assert tensors == gguf_tensors(graph_of(DENSE))
    names = [tensor.name for tensor in tensors]
    assert names[:2] == ["token_embd.weight", "blk.0.attn_norm.weight"]
    assert names[-2:] == ["output_norm.weight", "output.weight"]
    layers = [tensor.layer for tensor in tensors if tensor.layer is not None]
    assert layers == sorted(layers), "blk.10 after blk.9"
    assert len(names) == len(set(names)) == 3 + 11 * 11


def test_experts_are_stacked_in_order() -> None:
    tensors = {tensor.name: tensor for tensor in gguf_tensors(graph_of(MOE, shuffled=True))}
    down = tensors["blk.10.ffn_down_exps.weight"]
    assert down.shape == (12, 64, 48)
    assert (down.columns, down.is_stacked, down.base) == (48, True, "ffn_down_exps")
    assert [weight.role for weight in down.members] == [Role(Kind.DOWN_PROJ, 10, i) for i in range(12)]
    router = tensors["blk.10.ffn_gate_inp.weight"]
    assert (router.shape, router.is_stacked) == ((12, 64), False)
    assert "blk.10.ffn_down.weight" not in tensors
    assert "output.weight" not in tensors


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob is false"),
        ({"mlp_only_layers": (3,)}, "layer 3 has a dense MLP"),
        ({"decoder_sparse_step": 2}, "layer 0 has a dense MLP"),
    ],
)
def test_unrepresentable_mixtures_are_refused(change: dict[str, object], sentence: str) -> None:
    config = replace(MOE, **change)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match=sentence):
        gguf_tensors(graph_of(config))


def test_dense_models_are_representable_whatever_the_moe_fields_say() -> None:
    check_representable(DENSE)
    check_representable(MOE)
