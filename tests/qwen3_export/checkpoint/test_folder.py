"""Checkpoint folders: every way to store the same model gives the same graph, and damage is refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from models import write_model
from safetensors.numpy import load_file, save_file

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.safetensors_file import StoredWeight
from qwen3_export.errors import CheckpointError, ExportError, ModelNotFoundError, UnsupportedModelError
from qwen3_export.graph import Kind, Role, expected_weights, module_name


def test_every_variant_has_the_weights_of_its_config(any_model: Path) -> None:
    graph = open_checkpoint(any_model)
    assert {weight.role: weight.shape for weight in graph} == expected_weights(graph.config)
    assert list(graph.weights) == [weight.name for weight in graph]


@pytest.mark.parametrize(("one", "other"), [("tied", "sharded"), ("moe", "moe_fused"), ("moe", "moe_sharded")])
def test_storage_does_not_matter(one: str, other: str, model_graph) -> None:
    for a, b in zip(model_graph(one), model_graph(other), strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a.read(), b.read())


@pytest.mark.parametrize("name", ["tied", "f16", "f32"])
def test_values_are_those_that_safetensors_reads(name: str, model_folder) -> None:
    torch_tensors = pytest.importorskip("safetensors.torch").load_file(model_folder(name) / "model.safetensors")
    for weight in open_checkpoint(model_folder(name)):
        expected = torch_tensors[f"{weight.name}.weight"].float().numpy()
        np.testing.assert_array_equal(weight.read(), expected)
        np.testing.assert_array_equal(weight.read(slice(3, 5)), expected[3:5])


def test_opening_reads_headers_only(model_folder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(StoredWeight, "read_raw", refuse)
    open_checkpoint(model_folder("moe_sharded"))


def test_duplicate_head_is_dropped_and_said(model_graph) -> None:
    graph = model_graph("duplicate_head")
    assert graph.config.tie_word_embeddings
    assert "lm_head" not in graph.weights
    assert "byte for byte" in graph.notes[0]


def test_a_head_that_differs_is_kept_although_the_config_ties_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "untied")
    edit_config(folder, tie_word_embeddings=True)
    graph = open_checkpoint(folder)
    assert not graph.config.tie_word_embeddings
    assert graph.head.role == Role(Kind.LM_HEAD)
    assert "differ" in graph.notes[0]


def test_truncation_renumbers_layers(model_graph) -> None:
    graph = model_graph("moe_with_dense_layers")
    part = graph.truncated(2, 2)
    assert {weight.role: weight.shape for weight in part} == expected_weights(part.config)
    moved = part[Role(Kind.Q_PROJ, 1)].read()
    np.testing.assert_array_equal(moved, graph[Role(Kind.Q_PROJ, 3)].read())


def test_module_names_are_hugging_faces() -> None:
    assert module_name(Role(Kind.DOWN_PROJ, 3, 17)) == "model.layers.3.mlp.experts.17.down_proj"
    assert module_name(Role(Kind.ROUTER, 3)) == "model.layers.3.mlp.gate"
    assert module_name(Role(Kind.LM_HEAD)) == "lm_head"


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    path = folder / "model.safetensors"
    tensors = {**load_file(path), **changes}
    save_file({name: value for name, value in tensors.items() if value is not None}, path)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def empty_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def only_an_adapter(folder: Path) -> None:
    empty_folder(folder)
    (folder / "adapter_config.json").write_text("{}")


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BROKEN = {
    "empty": (empty_folder, CheckpointError, "config.json"),
    "adapter": (only_an_adapter, UnsupportedModelError, "LoRA"),
    "pickled": (pickled, CheckpointError, "safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), CheckpointError, "download"),
    "config is not JSON": (lambda f: (f / "config.json").write_text("{"), CheckpointError, "JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), CheckpointError, "object"),
    "cut in the data": (lambda f: cut(f / "model.safetensors", 100_000), CheckpointError, "cut short"),
    "cut in the header": (lambda f: cut(f / "model.safetensors", 100), CheckpointError, "cut short"),
    "cut to nothing": (lambda f: cut(f / "model.safetensors", 0), CheckpointError, "cut short"),
    "header of another kind": (
        lambda f: (f / "model.safetensors").write_bytes(struct.pack("<Q", 4) + b"abcd"), CheckpointError, "damaged"
    ),
    "wrong shape": (
        lambda f: edit_tensors(f, **{"model.norm.weight": np.ones(7, np.float32)}), CheckpointError, "shape [7]"
    ),
    "missing tensor": (lambda f: edit_tensors(f, **{"model.norm.weight": None}), CheckpointError, "model.norm"),
    "foreign tensor": (
        lambda f: edit_tensors(f, **{"model.visual.weight": np.ones(7, np.float32)}), UnsupportedModelError, "visual"
    ),
    "integers": (
        lambda f: edit_tensors(f, **{"model.norm.weight": np.ones(256, np.int8)}), UnsupportedModelError, "I8"
    ),
    "more layers than stored": (lambda f: edit_config(f, num_hidden_layers=3), CheckpointError, "layers.2"),
    "fewer layers than stored": (lambda f: edit_config(f, num_hidden_layers=1), UnsupportedModelError, "layers.1"),
}  # fmt: skip


@pytest.mark.parametrize("damage", sorted(BROKEN))
def test_damage_is_refused_in_one_sentence(damage: str, tmp_path: Path) -> None:
    breaks, error, word = BROKEN[damage]
    folder = write_model(tmp_path / "m ü", "f32")
    breaks(folder)
    with pytest.raises(error) as refusal:
        open_checkpoint(folder)
    assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_index_that_names_a_missing_file(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "sharded")
    shard = sorted(folder.glob("model-*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=shard.name):
        open_checkpoint(folder)


def test_index_that_names_the_wrong_shard(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "sharded")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    shards = sorted(set(index["weight_map"].values()))
    first = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][first] = shards[1]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=first):
        open_checkpoint(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_found_when_read(value: float, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "f32")
    name = "model.layers.1.mlp.down_proj"
    tensor = load_file(folder / "model.safetensors")[f"{name}.weight"].copy()
    tensor[5, 7] = value
    edit_tensors(folder, **{f"{name}.weight": tensor})
    weight = open_checkpoint(folder).weights[name]
    weight.read(slice(0, 5))
    for rows in (slice(None), slice(4, 9)):
        with pytest.raises(CheckpointError, match=r"down_proj holds NaN or Inf \(first in row 5\)"):
            weight.read(rows)


def test_a_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "f32")
    graph = open_checkpoint(folder)
    cut(folder / "model.safetensors", 50_000)
    with pytest.raises(ExportError, match="ends inside"):
        graph[Role(Kind.NORM)].read()


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="not a folder"):
        open_checkpoint(tmp_path / "nowhere")
