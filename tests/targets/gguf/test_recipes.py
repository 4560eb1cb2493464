"""Recipes: tensor by tensor what llama.cpp chooses, the published sizes, and overrides that hold or are refused."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Role, expected_weights, module_name
from qwen3_export.targets.gguf.formats import FORMATS, TYPE_IDS
from qwen3_export.targets.gguf.names import GgufTensor, stack_weights
from qwen3_export.targets.gguf.overrides import is_always_f32
from qwen3_export.targets.gguf.recipes import (
    ALIASES,
    RECIPES,
    Overrides,
    Recipe,
    assign,
    find_recipe,
    parse_overrides,
)
from qwen3_export.targets.gguf.sizes import bits_per_weight, tensor_bytes, total_bytes

Types = dict[str, str]


@dataclass(frozen=True)
class Stand:
    """A weight with a shape and no values."""

    role: Role
    shape: tuple[int, ...]
    format: str = "BF16"

    @property
    def name(self) -> str:
        return module_name(self.role)

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        raise AssertionError(f"{self.name}[{rows}] was read")


def tensors_of(config: Qwen3Config) -> list[GgufTensor]:
    return stack_weights(Stand(role, shape) for role, shape in expected_weights(config).items())


def dense(**changes: Any) -> Qwen3Config:
    config = Qwen3Config(
        model_type="qwen3", vocab_size=32, hidden_size=256, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=64,
        rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True,
    )  # fmt: skip
    return replace(config, **changes)


def moe(**changes: Any) -> Qwen3Config:
    config = dense(
        model_type="qwen3_moe", tie_word_embeddings=False, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=256, norm_topk_prob=True,
    )  # fmt: skip
    return replace(config, **changes)


# llama.cpp as the oracle: a synthetic file in, its own choice of types out.


def write_source(path: Path, config: Qwen3Config) -> None:
    """The smallest GGUF file that ``llama_model_quantize`` takes: hyperparameters and zeros, no tokenizer.

    Matrices have two rows: types depend on a row's length, and the quantizer compares no other dimension.
    """
    import gguf

    writer = gguf.GGUFWriter(path, config.model_type.replace("_", ""))
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    if config.is_moe:
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    for tensor in tensors_of(config):
        if is_always_f32(tensor):
            writer.add_tensor(tensor.name, np.zeros(tensor.shape, np.float32))
        else:
            writer.add_tensor(tensor.name, np.zeros((*tensor.shape[:-2], 2, tensor.columns), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@dataclass
class Oracle:
    """``llama_model_quantize`` on synthetic files; ``api`` is llama-cpp-python's low-level module."""

    api: Any
    folder: Path

    def types(
        self, config: Qwen3Config, recipe: Recipe, *, has_imatrix: bool = False, **parameters: Any
    ) -> Types | None:
        """What it writes, or None where it refuses."""
        import gguf

        source = self.folder / f"{abs(hash(config))}.gguf"
        if not source.exists():
            write_source(source, config)
        settings = self.api.llama_model_quantize_default_params()
        settings.ftype, settings.nthread = recipe.file_type, 1
        if has_imatrix:
            settings.imatrix = self._flat_imatrix(tensors_of(config))
        for name, value in parameters.items():
            setattr(settings, name, value)
        target = self.folder / "quantized.gguf"
        if self.api.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings)):
            return None
        return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(target).tensors}

    def _flat_imatrix(self, tensors: Sequence[GgufTensor]) -> Any:
        matrices = [tensor for tensor in tensors if not is_always_f32(tensor)]
        entries = (self.api.llama_model_imatrix_data * (len(matrices) + 1))()
        for entry, tensor in zip(entries, matrices, strict=False):
            size = tensor.columns * len(tensor.members)
            entry.name, entry.size, entry.data = tensor.name.encode(), size, (ctypes.c_float * size)(*[1.0] * size)
        return entries


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    llama_cpp = pytest.importorskip("llama_cpp")
    if not hasattr(llama_cpp, "llama_model_imatrix_data"):
        pytest.skip("this llama-cpp-python takes importance matrices as a C++ map only")
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    yield Oracle(llama_cpp, tmp_path_factory.mktemp("oracle"))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))


def ours(config: Qwen3Config, recipe: Recipe, **settings: Any) -> Types | None:
    """The names of the formats, by tensor name; None for a refusal."""
    tensors = tensors_of(config)
    try:
        formats = assign(recipe, config, tensors, **{"has_imatrix": False} | settings)
    except QuantizationError:
        return None
    assert list(formats) == [member.name for tensor in tensors for member in tensor.members]
    for tensor in tensors:
        assert len({formats[member.name] for member in tensor.members}) == 1
    return {tensor.name: formats[tensor.members[0].name].name for tensor in tensors}


# One config for each rule, and for the shapes where rules meet.
CONFIGS = {
    "tied": dense(),
    "untied": dense(tie_word_embeddings=False),
    "one layer": dense(num_hidden_layers=1, num_key_value_heads=1),
    "an eighth of 9 layers": dense(num_hidden_layers=9, num_key_value_heads=1, head_dim=64),
    "a sixteenth of 17 layers": dense(num_hidden_layers=17, tie_word_embeddings=False),
    "28 layers": dense(num_hidden_layers=28, num_attention_heads=2, num_key_value_heads=1, head_dim=128),
    "3 heads per kv": dense(num_attention_heads=6, num_key_value_heads=2, num_hidden_layers=8),
    "5 heads per kv": dense(num_attention_heads=10, num_key_value_heads=2, num_hidden_layers=8),
    "no row of 256": dense(hidden_size=96, intermediate_size=160, head_dim=24, num_hidden_layers=9),
    "no row of 32, untied": dense(hidden_size=80, intermediate_size=72, head_dim=6, tie_word_embeddings=False),
    "no row of 32, tied": dense(hidden_size=40, intermediate_size=256),
    "only ffn_down falls back": dense(intermediate_size=288, num_hidden_layers=16),
    "only attn_output falls back": dense(head_dim=24, num_hidden_layers=8, tie_word_embeddings=False),
    "moe": moe(num_hidden_layers=9),
    "moe, 8 experts": moe(num_hidden_layers=9, num_experts=8),
    "moe, 8 experts, tied": moe(num_experts=8, num_key_value_heads=1, tie_word_embeddings=True),
    "moe, 1 expert": moe(num_experts=1, num_experts_per_tok=1, num_hidden_layers=8),
    "moe, 9 narrow experts": moe(num_experts=9, moe_intermediate_size=96, num_hidden_layers=8),
    "moe, 8 experts, no row of 256": moe(hidden_size=64, moe_intermediate_size=40, num_experts=8, head_dim=10),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_types_are_those_of_llama_cpp(config: Qwen3Config, oracle: Oracle) -> None:
    for recipe in RECIPES.values():
        assert ours(config, recipe) == oracle.types(config, recipe), recipe.name


@pytest.mark.parametrize("name", ["an eighth of 9 layers", "no row of 256", "moe", "moe, 8 experts, tied"])
def test_types_under_an_imatrix_are_those_of_llama_cpp(name: str, oracle: Oracle) -> None:
    config = CONFIGS[name]
    for recipe in RECIPES.values():
        theirs = oracle.types(config, recipe, has_imatrix=True)
        assert ours(config, recipe, has_imatrix=True) == theirs, recipe.name


def test_the_grid_reaches_every_format_and_a_refusal() -> None:
    """The comparison above means little if its configs leave branches out."""
    seen: set[str] = set()
    refused = 0
    for config in CONFIGS.values():
        for recipe in RECIPES.values():
            types = ours(config, recipe)
            refused += types is None
            seen |= set((types or {}).values()) | set((ours(config, recipe, has_imatrix=True) or {}).values())
    assert seen == set(FORMATS)
    assert refused


# The same numbers as ggml's type enum; llama.cpp takes them for these two options.
@pytest.mark.parametrize("config", [CONFIGS["tied"], CONFIGS["untied"]], ids=["tied", "untied"])
@pytest.mark.parametrize(
    "overrides",
    [
        Overrides(output_type="Q8_0"),
        Overrides(embedding_type="Q4_0"),
        Overrides(output_type="F16", embedding_type="F16"),
    ],
)
def test_output_and_embedding_types_are_those_of_llama_cpp(
    config: Qwen3Config, overrides: Overrides, oracle: Oracle
) -> None:
    options = {"output_tensor_type": overrides.output_type, "token_embedding_type": overrides.embedding_type}
    numbers: dict[str, Any] = {key: TYPE_IDS[name] for key, name in options.items() if name}
    for name in ("q4_k_m", "q8_0", "iq4_xs"):
        recipe = RECIPES[name]
        assert ours(config, recipe, overrides=overrides) == oracle.types(config, recipe, **numbers), name


@pytest.mark.parametrize("config", [dense(num_hidden_layers=9), moe(num_hidden_layers=9)], ids=["dense", "moe"])
def test_role_overrides_are_those_of_llama_cpp(config: Qwen3Config, oracle: Oracle) -> None:
    wanted = {"attn_k": "Q8_0", "ffn_up_exps" if config.is_moe else "ffn_up": "Q5_K"}
    patterns = (oracle.api.llama_model_tensor_override * (len(wanted) + 1))()
    for pattern, (name, format_name) in zip(patterns, wanted.items(), strict=False):
        pattern.pattern, pattern.type = f"{name}.weight".encode(), TYPE_IDS[format_name]
    theirs = oracle.types(config, RECIPES["q4_k_m"], tt_overrides=patterns)
    assert ours(config, RECIPES["q4_k_m"], overrides=Overrides(tensor_types=wanted)) == theirs


# Published file sizes, in GB of tensor data.
QWEN3_4B = dense(
    vocab_size=151936, hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128,
)  # fmt: skip
QWEN3_8B = replace(QWEN3_4B, hidden_size=4096, intermediate_size=12288, tie_word_embeddings=False)


@pytest.mark.parametrize(
    ("config", "name", "gigabytes"),
    [
        (QWEN3_4B, "q3_k_m", 2.070),
        (QWEN3_4B, "q4_k_m", 2.491),
        (QWEN3_4B, "q5_k_m", 2.884),
        (QWEN3_4B, "q6_k", 3.300),
        (QWEN3_4B, "q8_0", 4.274),
        (QWEN3_8B, "q4_0", 4.769),
        (QWEN3_8B, "q6_k", 6.720),
        (QWEN3_8B, "q8_0", 8.704),
    ],
)
def test_published_sizes(config: Qwen3Config, name: str, gigabytes: float) -> None:
    tensors = tensors_of(config)
    formats = assign(RECIPES[name], config, tensors, has_imatrix=False)
    assert total_bytes(tensors, formats) / 1e9 == pytest.approx(gigabytes, abs=5e-4)


def test_bits_per_weight() -> None:
    config = dense()
    tensors = tensors_of(config)
    assert bits_per_weight(tensors, assign(RECIPES["f32"], config, tensors, has_imatrix=False)) == 32
    formats = assign(RECIPES["q8_0"], config, tensors, has_imatrix=False)
    assert 8.5 < bits_per_weight(tensors, formats) < 8.6, "the norms are F32"
    stacked = next(tensor for tensor in tensors_of(moe()) if tensor.base == "ffn_down_exps")
    assert tensor_bytes(stacked, FORMATS["Q4_K"]) == 4 * 256 * 144


@pytest.mark.parametrize("name", ["q4_k_m", "Q4_K_M", "q4_k"])
def test_recipes_by_name(name: str) -> None:
    assert find_recipe(name) is RECIPES["q4_k_m"]


def test_recipe_names() -> None:
    assert all(RECIPES[name].name == name for name in RECIPES)
    assert set(ALIASES.values()) <= set(RECIPES)
    assert len({recipe.file_type for recipe in RECIPES.values()}) == len(RECIPES)
    with pytest.raises(QuantizationError, match=r"'q4km' is not a GGUF recipe; use one of f32, .*iq4_xs$"):
        find_recipe("q4km")


def test_file_types_are_those_of_gguf() -> None:
    gguf = pytest.importorskip("gguf")
    prefix = {"f32": "ALL_"}
    for recipe in RECIPES.values():
        assert gguf.LlamaFileType[prefix.get(recipe.name, "MOSTLY_") + recipe.name.upper()] == recipe.file_type


def test_two_bits_need_an_importance_matrix() -> None:
    config = dense()
    with pytest.raises(QuantizationError, match=r"blk\.0\.attn_q\.weight: q2_k_s stores it in 2 bits"):
        assign(RECIPES["q2_k_s"], config, tensors_of(config), has_imatrix=False)


# Overrides


def test_overrides_are_parsed() -> None:
    overrides = parse_overrides(
        ["attn_v=q6_k", "BLK.3.ffn_down.weight = Q8_0"], output_type="q8_0", embedding_type=None
    )
    assert overrides.tensor_types == {"attn_v": "Q6_K", "blk.3.ffn_down": "Q8_0"}
    assert (overrides.output_type, overrides.embedding_type) == ("Q8_0", None)


@pytest.mark.parametrize("base", ["f16", "q4_k_m"])
def test_one_layer_wins_over_the_role_and_touches_nothing_else(base: str) -> None:
    config = dense(num_hidden_layers=9)
    plain, changed = (
        assign(RECIPES[base], config, tensors_of(config), has_imatrix=False, overrides=parse_overrides(texts))
        for texts in ([], ["attn_v=q5_0", "blk.3.attn_v=q8_0", "blk.0.ffn_down=f32"])
    )
    differing = {name: changed[name].name for name in changed if changed[name] != plain[name]}
    expected = {f"model.layers.{layer}.self_attn.v_proj": "Q5_0" for layer in range(9)}
    expected |= {"model.layers.3.self_attn.v_proj": "Q8_0", "model.layers.0.mlp.down_proj": "F32"}
    assert differing == expected


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (lambda: parse_overrides(["attn_v"]), "attn_v: write it as attn_v=q6_k"),
        (lambda: parse_overrides(["attn_v=q4_k_m"]), "no format 'q4_k_m'; use one of F32, "),
        (lambda: parse_overrides([], output_type="q9"), "`output_type`: no format 'q9'"),
        (lambda: parse_overrides(["attn_v=q6_k", "attn_v=q8_0"]), "attn_v is given Q6_K and Q8_0; give one"),
        (lambda: parse_overrides(["attn_vv=q6_k"]), "no tensor attn_vv; use one of attn_k, attn_output"),
        (lambda: parse_overrides(["blk.4.attn_v=q6_k"]), r"no tensor blk\.4\.attn_v"),
        (lambda: parse_overrides(["output=q6_k"]), "no tensor output;"),
        (lambda: parse_overrides(["attn_norm=f16"]), r"blk\.0\.attn_norm\.weight: it is always stored as F32"),
        (
            lambda: parse_overrides(["ffn_down=q4_k"]),
            r"blk\.0\.ffn_down\.weight: rows of 288 are not a multiple of Q4_K's blocks of 256, so `tensor_type` "
            r"ffn_down cannot be met; use F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, IQ4_NL, BF16",
        ),
        (
            lambda: parse_overrides([], output_type="q8_0", embedding_type="q6_k"),
            r"token_embd\.weight: `embedding_type` asks for Q6_K and `output_type` for Q8_0; give one of them",
        ),
        (
            lambda: parse_overrides(["token_embd=q5_k"], output_type="q8_0"),
            r"token_embd\.weight: `tensor_type` token_embd asks for Q5_K and `output_type` for Q8_0",
        ),
    ],
)  # fmt: skip
def test_overrides_that_cannot_hold_are_refused(request_: Callable[[], Overrides], sentence: str) -> None:
    config = dense(intermediate_size=288)
    with pytest.raises(QuantizationError, match=sentence):
        assign(RECIPES["q4_k_m"], config, tensors_of(config), has_imatrix=False, overrides=request_())
