"""Metadata as gguf-py reads it: nothing missing that llama.cpp's loader has a wrong default for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from models import write_model

from qwen3_export.checkpoint.model import load
from qwen3_export.targets.gguf.container import serialize_header
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata


def read_back(folder: Path, tmp_path: Path, **provenance: Any) -> dict[str, Any]:
    metadata = build_metadata(load(folder), Provenance(recipe="q4_k_m", file_type=15, **provenance))
    path = tmp_path / "metadata.gguf"
    path.write_bytes(serialize_header(metadata, []) + bytes(32))
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def test_hyperparameters_are_the_configs(any_model: Path, tmp_path: Path) -> None:
    config = json.loads((any_model / "config.json").read_text())
    fields = read_back(any_model, tmp_path)
    arch = fields["general.architecture"]
    assert arch == ("qwen3moe" if config["model_type"] == "qwen3_moe" else "qwen3")
    expected = {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
    }
    for key, field in expected.items():
        assert fields.get(f"{arch}.{key}") == config.get(field)
    assert fields[f"{arch}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert fields[f"{arch}.rope.freq_base"] == 1_000_000


@pytest.mark.parametrize("name", ["yarn", "yarn_new_spelling"])
def test_yarn_is_written_only_where_the_config_has_it(name: str, model_folder, tmp_path: Path) -> None:
    fields = read_back(model_folder(name), tmp_path)
    assert fields["qwen3.rope.scaling.type"] == "yarn"
    assert fields["qwen3.rope.scaling.factor"] == 4.0
    assert fields["qwen3.rope.scaling.original_context_length"] == 512
    assert not any("scaling" in key for key in read_back(model_folder("tied"), tmp_path))


def test_every_row_of_the_embedding_has_a_token(model_folder, tmp_path: Path) -> None:
    fields = read_back(model_folder("resized_vocabulary"), tmp_path)
    tokens, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 8320
    assert len(set(tokens)) == len(tokens)
    assert (tokens[8158], types[8158]) == ("<|im_end|>", 3)
    assert (tokens[8180], types[8180]) == ("<think>", 4)
    assert (tokens[8319], types[8319]) == ("[PAD8319]", 5)
    assert types[100] == 1


def test_added_tokens_keep_their_kind(model_folder, tmp_path: Path) -> None:
    fields = read_back(model_folder("added_tokens"), tmp_path)
    kinds = dict(zip(fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"], strict=True))
    assert kinds["<note>"] in (3, 4)
    assert kinds["<|endoftext|>"] == 3


def test_tokenizer_template_and_sampling(demo_folder: Path, tmp_path: Path) -> None:
    fields = read_back(demo_folder, tmp_path)
    tokenizer = json.loads((demo_folder / "tokenizer.json").read_text())
    settings = json.loads((demo_folder / "tokenizer_config.json").read_text())
    assert fields["tokenizer.ggml.model"] == "gpt2"
    assert fields["tokenizer.ggml.pre"] == "qwen2"
    assert fields["tokenizer.ggml.merges"] == [" ".join(merge) for merge in tokenizer["model"]["merges"]]
    assert fields["tokenizer.chat_template"] == settings["chat_template"]
    assert fields["tokenizer.ggml.eos_token_id"] == 8158
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert fields["general.sampling.temp"] == pytest.approx(0.6)
    assert fields["general.sampling.top_k"] == 20
    assert fields["general.sampling.top_p"] == pytest.approx(0.95)
    assert fields["general.license"] == "apache-2.0"


def test_a_card_gives_its_fields_and_none_of_its_prose(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "Qwen3-1.7B-Note")
    card = "---\nlicense: mit\nbase_model: Qwen/Qwen3-1.7B\ntags: [a, b]\nlanguage: [de, en]\n---\n# license: none\n"
    (folder / "README.md").write_text(card)
    fields = read_back(folder, tmp_path)
    assert fields["general.license"] == "mit"
    assert fields["general.base_model.0.organization"] == "Qwen"
    assert fields["general.base_model.0.name"] == "Qwen3 1.7B"
    assert fields["general.tags"] == ["a", "b"]
    assert fields["general.languages"] == ["de", "en"]
    assert fields["general.basename"] == "Qwen3"


@pytest.mark.parametrize("card", ["---\n: [broken\n---\n", "---\n- a list\n---\n", "no front matter", "\xff"])
def test_a_card_that_cannot_be_read_is_left_alone(card: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "README.md").write_bytes(card.encode("latin-1"))
    assert "general.license" not in read_back(folder, tmp_path)


def test_provenance_names_the_importance_matrix(demo_folder: Path, tmp_path: Path) -> None:
    fields = read_back(demo_folder, tmp_path, imatrix_file="im.gguf", imatrix_datasets=("a",), imatrix_entries=7)
    assert fields["quantize.imatrix.file"] == "im.gguf"
    assert fields["quantize.imatrix.entries_count"] == 7
    assert fields["qwen3_export.recipe"] == "q4_k_m"
