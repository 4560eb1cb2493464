"""Folders with more than one set of weights: the one that transformers loads is read, and the others are named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from models import write_model
from safetensors.numpy import load_file, save_file

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.errors import CheckpointError, ExportError, UnsupportedModelError
from qwen3_export.graph import Graph

NAME = "model.layers.0.self_attn.q_proj"
INDEX = "model.safetensors.index.json"


def tuned(folder: Path) -> np.ndarray:
    """A fine-tune saved as one file into the folder of its base; returns its q_proj."""
    other = write_model(folder.parent / "tuned", "f32", seed=1)
    shutil.copyfile(other / "model.safetensors", folder / "model.safetensors")
    return load_file(folder / "model.safetensors")[f"{NAME}.weight"]


def sharded(folder: Path) -> Path:
    return write_model(folder / "m", "sharded", torch_dtype="float32")


def values(graph: Graph) -> np.ndarray:
    return graph.weights[NAME].read()


@pytest.mark.parametrize("shards", ["kept", "gone"])
def test_one_file_beside_an_old_index(tmp_path: Path, shards: str) -> None:
    folder = sharded(tmp_path)
    expected = tuned(folder)
    if shards == "gone":
        for path in folder.glob("model-*.safetensors"):
            path.unlink()
    graph = open_checkpoint(folder)
    np.testing.assert_array_equal(values(graph), expected)
    (note,) = graph.notes
    assert "those of model.safetensors" in note
    assert ("model-00001" in note) == (shards == "kept")
    pytest.importorskip("transformers")
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(folder).get_parameter(f"{NAME}.weight")
    np.testing.assert_array_equal(theirs.detach().numpy(), expected)


def test_shards_of_an_older_save_and_pickled_weights_are_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path)
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"")
    (folder / "pytorch_model.bin").write_bytes(b"")
    (folder / "training_args.bin").write_bytes(b"")
    (note,) = open_checkpoint(folder).notes
    assert note.endswith('not read: "model-00001-of-00002.safetensors", "pytorch_model.bin" beside it')


def test_file_that_the_config_names(tmp_path: Path) -> None:
    """transformers_weights of config.json comes before all names that are looked for."""
    folder = write_model(tmp_path / "m", "f32")
    other = write_model(tmp_path / "other", "f32", seed=1)
    shutil.copyfile(other / "model.safetensors", folder / "best.safetensors")
    edit_config(folder, transformers_weights="best.safetensors")
    np.testing.assert_array_equal(values(open_checkpoint(folder)), values(open_checkpoint(other)))
    for name in ("gone.safetensors", "best.bin", "../other/model.safetensors", 5):
        edit_config(folder, transformers_weights=name)
        with pytest.raises(CheckpointError):
            open_checkpoint(folder)


def test_tensor_that_the_index_does_not_list(tmp_path: Path) -> None:
    """transformers takes whatever the shards hold."""
    folder = sharded(tmp_path)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].pop(f"{NAME}.weight")
    (folder / INDEX).write_text(json.dumps(index))
    np.testing.assert_array_equal(values(open_checkpoint(folder)), values(open_checkpoint(sharded(tmp_path / "again"))))


def without_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def of_another_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")


def adapter_beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"x": np.ones(3, np.float32)}, folder / "adapter_model.safetensors")


def weights_of_an_adapter_alone(folder: Path) -> None:
    save_file({"x": np.ones(3, np.float32)}, folder / "adapter_model.safetensors")


def adapter_with_a_config(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    stated = {"peft_type": "LORA", "base_model_name_or_path": "Qwen/Qwen3-0.6B"}
    (folder / "adapter_config.json").write_text(json.dumps(stated))


def another_kind_of_adapter(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))


def damaged_adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


REFUSED = {
    "shards without an index": (without_index, CheckpointError, ["model-00001-of-00002", INDEX]),
    "another name": (of_another_name, CheckpointError, ["model.fp16.safetensors", "rename"]),
    "adapter beside": (adapter_beside, UnsupportedModelError, ["beside the model's weights", "LoRA", "merge"]),
    "adapter's weights": (weights_of_an_adapter_alone, UnsupportedModelError, ["beside", "adapter_model", "merge"]),
    "adapter with a config": (adapter_with_a_config, UnsupportedModelError, ["LoRA", "Qwen/Qwen3-0.6B", "merge"]),
    "another adapter": (another_kind_of_adapter, UnsupportedModelError, ["IA3", "merge"]),
    "damaged adapter": (damaged_adapter, UnsupportedModelError, ["adapter", "merge"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    change: Callable[[Path], None]
    change, error, words = REFUSED[case]
    folder = write_model(tmp_path / "m", "f32")
    change(folder)
    with pytest.raises(ExportError) as refusal:
        open_checkpoint(folder)
    assert refusal.type is error
    for word in words:
        assert word in str(refusal.value)
    assert "\n" not in str(refusal.value)


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
