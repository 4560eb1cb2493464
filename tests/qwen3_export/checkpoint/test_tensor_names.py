"""Checkpoints with other names in them: what is unambiguous is read, the rest is refused with what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import write_model
from safetensors.numpy import load_file, save_file

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.errors import CheckpointError, ExportError, UnsupportedModelError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
Tensors = dict[str, np.ndarray]


def under(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: value for name, value in tensors.items()}


def checkpointed(tensors: Tensors) -> Tensors:
    return {name.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."): v for name, v in tensors.items()}


def bare(tensors: Tensors) -> Tensors:
    return {name.removeprefix("model."): value for name, value in tensors.items()}


def head_alone(tensors: Tensors) -> Tensors:
    return {HEAD if name == EMBEDDING else name: value for name, value in tensors.items()}


READ = {
    "data parallel": ("tied", under("module.")),
    "compiled": ("tied", under("_orig_mod.")),
    "compiled and data parallel": ("untied", under("_orig_mod.module.")),
    "merged by peft": ("untied", under("base_model.model.")),
    "merged by peft, tied": ("tied", under("base_model.model.")),
    "under a name of its own": ("untied", under("policy.")),
    "checkpointed layers": ("tied", checkpointed),
    "experts": ("moe_fused", under("module.")),
    "no model before the names": ("untied", bare),
    "head alone": ("tied", head_alone),
    "head alone, compiled": ("tied", lambda tensors: under("_orig_mod.")(head_alone(tensors))),
}


def rewritten(folder: Path, variant: str, change: Callable[[Tensors], Tensors], **config: object) -> Path:
    write_model(folder, variant, torch_dtype="float32", num_hidden_layers=1, **config)
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


@pytest.mark.parametrize("case", READ)
def test_read_as_the_model_that_they_are(case: str, tmp_path: Path) -> None:
    variant, change = READ[case]
    graph = open_checkpoint(rewritten(tmp_path / "m", variant, change))
    plain = open_checkpoint(rewritten(tmp_path / "plain", variant, lambda tensors: tensors))
    assert list(graph.weights) == list(plain.weights)
    for name, weight in graph.weights.items():
        np.testing.assert_array_equal(weight.read(), plain.weights[name].read())
    assert not plain.notes
    assert graph.notes


def with_lora(tensors: Tensors) -> Tensors:
    name = "model.layers.0.self_attn.q_proj"
    wrapped = {n.replace(name, f"{name}.base_layer"): v for n, v in tensors.items()}
    return under("base_model.model.")({**wrapped, f"{name}.lora_A.default.weight": np.ones((2, 256), np.float32)})


def of_a_larger_model(tensors: Tensors) -> Tensors:
    return {**under("language_model.")(tensors), "visual.patch_embed.weight": np.ones((2, 2), np.float32)}


def twice(tensors: Tensors) -> Tensors:
    return {**tensors, **{f"module.{name}": value for name, value in tensors.items() if name == EMBEDDING}}


REFUSED = {
    "embedding model": ("tied", bare, UnsupportedModelError, ["embedding model", "no lm_head"]),
    "embedding model, compiled": (
        "tied", lambda t: under("_orig_mod.")(bare(t)), UnsupportedModelError, ["embedding model"]),
    "embedding model, under a name": (
        "tied", lambda t: under("0.auto_model.")(bare(t)), UnsupportedModelError, ["embedding model"]),
    "embedding model, merged by peft": ("tied", under("base_model."), UnsupportedModelError, ["embedding model"]),
    "adapter that is not merged": ("tied", with_lora, UnsupportedModelError, ["not merged", "merge_and_unload"]),
    "part of a larger model": (
        "tied", of_a_larger_model, UnsupportedModelError, ["language_model", "visual.patch_embed", "larger model"]),
    "under two names": ("tied", twice, CheckpointError, [EMBEDDING, f"module.{EMBEDDING}", "same weight"]),
    "no head": (
        "untied", lambda t: {n: v for n, v in t.items() if n != HEAD}, CheckpointError, ["tie_word_embeddings"]),
    "no embedding": (
        "untied", lambda t: {n: v for n, v in t.items() if n != EMBEDDING}, CheckpointError, [EMBEDDING, "none"]),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    variant, change, error, words = REFUSED[case]
    folder = rewritten(tmp_path / "m", variant, change)
    with pytest.raises(ExportError) as refusal:
        open_checkpoint(folder)
    assert refusal.type is error
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


QUANTIZATIONS = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq": {"quant_method": "gptq", "bits": 4},
    "unknown": {"bits": 4},
}


@pytest.mark.parametrize("method", QUANTIZATIONS)
def test_quantization_config_left_in_a_merge(method: str, tmp_path: Path) -> None:
    """What is stored decides: a 16-bit merge keeps the config of the quantized model that it was trained on."""
    folder = rewritten(tmp_path / "m", "tied", lambda t: t, quantization_config=QUANTIZATIONS[method])
    (note,) = open_checkpoint(folder).notes
    assert method in note
    assert "stored as F32" in note


def packed(tensors: Tensors) -> Tensors:
    name = "model.layers.0.self_attn.q_proj"
    return {
        **{n: v for n, v in tensors.items() if not n.startswith(name)},
        f"{name}.qweight": np.ones((32, 512), np.int32),
        f"{name}.scales": np.ones((2, 512), np.float16),
    }


def integers(tensors: Tensors) -> Tensors:
    name = "model.layers.0.mlp.up_proj.weight"
    return {**tensors, name: np.ones(tensors[name].shape, np.int8)}


@pytest.mark.parametrize(
    ("change", "stated", "words"),
    [
        (packed, QUANTIZATIONS["gptq"], ["already quantized", "gptq", "q_proj.qweight"]),
        (packed, None, ["already quantized", "q_proj.qweight"]),
        (integers, QUANTIZATIONS["bitsandbytes"], ["already quantized", "bitsandbytes", "up_proj", "I8"]),
        (integers, None, ["up_proj", "I8"]),
    ],
)
def test_weights_that_are_quantized(
    change: Callable[[Tensors], Tensors], stated: dict[str, object] | None, words: list[str], tmp_path: Path
) -> None:
    folder = rewritten(tmp_path / "m", "tied", change, quantization_config=stated)
    assert json.loads((folder / "config.json").read_text())["quantization_config"] == stated
    with pytest.raises(UnsupportedModelError) as refusal:
        open_checkpoint(folder)
    for word in words:
        assert word in str(refusal.value)
