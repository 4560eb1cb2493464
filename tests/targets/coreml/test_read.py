"""Packages that are not what they should be, and what is said of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Kind, Role
from qwen3_export.targets.coreml.metadata_check import context_length, metadata_differences
from qwen3_export.targets.coreml.names import MODEL_FILE, WEIGHT_FILE
from qwen3_export.targets.coreml.read import open_coreml, read_graph, tensor_differences
from qwen3_export.targets.coreml.values import check_values


def copied(written: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(written.folder, folder)
    return folder


def test_what_is_written_has_no_differences(packaged: Callable[..., Any]) -> None:
    for variant, recipe, options in [
        ("tied", "int4", {"group_size": 64, "split_lm_head": 4096}),
        ("rows_of_72", "fp32", {"context_length": 100}),
        ("yarn", "fp32", {"fused_attention": True}),
        ("untied", "palette4", {"split_lm_head": 3200}),
    ]:
        written = packaged(variant, recipe, **options)
        file, graph = open_coreml(written.folder), written.model.graph
        assert metadata_differences(file, graph, written.model.tokenizer) == []
        assert tensor_differences(file, graph) == []
        assert context_length(file) == written.export.context_length
        assert open_coreml(written.export.package).metadata == file.metadata
        found = check_values(read_graph(file, graph), graph, is_full=True, is_solved=False)
        assert found.differences == ()
        assert found.rows == found.rows_in_all


def test_another_model_s_numbers_are_told(packaged: Callable[..., Any]) -> None:
    written = packaged("yarn", "fp32", fused_attention=True)
    file, model = open_coreml(written.folder), written.model
    config = model.graph.config
    for change, told in [
        ({"rms_norm_eps": 1e-5}, "root_eps is 0.001"),
        ({"rope_scaling": None}, "cos_table holds other angles"),
        ({"max_position_embeddings": 1024, "rope_scaling": None}, "takes 2048 positions"),
        ({"num_hidden_layers": 3}, "the program has 2 layers"),
        ({"num_key_value_heads": 4}, "does not go with the checkpoint's heads"),
    ]:
        other = replace(model.graph, config=replace(config, **change))  # type: ignore[arg-type]
        found = metadata_differences(file, other, model.tokenizer)
        assert any(told in sentence for sentence in found), (change, found)


def test_another_model_s_values_are_told(packaged: Callable[..., Any], model_graph: Callable[[str], Any]) -> None:
    for recipe in ("palette4", "int8"):
        written = packaged("untied", recipe)
        stored = read_graph(open_coreml(written.folder), written.model.graph)
        swapped = dict(stored.weights)
        gate, up = (Role(kind, 0) for kind in (Kind.GATE_PROJ, Kind.UP_PROJ))
        swapped[stored[gate].name] = replace(stored[up], role=gate)  # type: ignore[type-var]
        swapped[stored[up].name] = replace(stored[gate], role=up)  # type: ignore[type-var]
        damaged = check_values(stored.with_weights(swapped), stored, is_full=True, is_solved=False)
        assert sum("relative error" in sentence for sentence in damaged.differences) == 2
    wider = tensor_differences(open_coreml(written.folder), model_graph("rows_of_320"))
    assert "has shape" in wider[0]
    missing = tensor_differences(open_coreml(packaged("tied", "fp16").folder), model_graph("untied"))
    assert missing[0].startswith("lm_head is missing")


def test_a_tied_head_that_is_not_the_embedding(packaged: Callable[..., Any], tmp_path: Path) -> None:
    written = packaged("tied", "int4", group_size=64, split_lm_head=4096)
    folder = copied(written, tmp_path)
    path = folder / "model.mlpackage" / WEIGHT_FILE
    data = bytearray(path.read_bytes())
    data[written.export.plan.parts["lm_head_part_1"]["data"].data_offset + 1000] ^= 0x11
    path.write_bytes(data)
    assert tensor_differences(open_coreml(folder), written.model.graph) == [
        "the head differs from the embedding that it is tied to (row 4096 or after)"
    ]


def test_broken_packages(packaged: Callable[..., Any], tmp_path: Path) -> None:
    written = packaged("tied", "fp16")
    with pytest.raises(CheckpointError, match=r"holds no \.mlpackage"):
        open_coreml(tmp_path)
    folder = copied(written, tmp_path)
    weights = folder / "model.mlpackage" / WEIGHT_FILE
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1000])
    with pytest.raises(CheckpointError, match=r"cut short|ends inside"):
        open_coreml(folder)
    first = written.export.plan.parts["model_embed_tokens"]["val"]
    weights.write_bytes(whole[: first.offset] + bytes(64) + whole[first.data_offset :])
    with pytest.raises(CheckpointError, match="no array begins at byte 64"):
        open_coreml(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"is missing|cannot be read"):
        open_coreml(folder)
    (folder / "model.mlpackage" / MODEL_FILE).write_bytes(b"\xff" * 100)
    with pytest.raises(CheckpointError, match="no Core ML model"):
        open_coreml(folder)
    shutil.rmtree(folder / "model.mlpackage")
    for name in ("a.mlpackage", "b.mlpackage"):
        (folder / name).mkdir()
    with pytest.raises(CheckpointError, match="holds 2 packages"):
        open_coreml(folder)


def test_documents_beside_the_package(packaged: Callable[..., Any], tmp_path: Path) -> None:
    written = packaged("tied", "fp16")
    folder = copied(written, tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").unlink()
    file = open_coreml(folder)
    found = metadata_differences(file, written.model.graph, written.model.tokenizer)
    assert found == ["config.json is missing", "tokenizer.json is not the checkpoint's, and tokenizes otherwise"]


def test_vectors_are_read_by_rows(packaged: Callable[..., Any]) -> None:
    written = packaged("tied", "fp16")
    stored = read_graph(open_coreml(written.folder), written.model.graph)
    norm = stored[Role(Kind.NORM)]
    np.testing.assert_array_equal(norm.read(slice(2, 5)), norm.read()[2:5])
