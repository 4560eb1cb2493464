"""The written file, read back with gguf-py: layout, bytes, splits, and what cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
from models import VARIANTS, write_model
from safetensors.numpy import load_file, save_file

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CheckpointError, OutputError, QuantizationError
from qwen3_export.targets.gguf import emit as emit_module
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import GgufExport, prepare
from qwen3_export.targets.gguf.formats import FORMATS, TYPE_IDS
from qwen3_export.targets.gguf.recipes import find_recipe
from qwen3_export.targets.gguf.target import GgufOptions


def exported(model: Model, out: Path, quant: str = "q4_k_m", **options: object) -> GgufExport:
    export = prepare(model, find_recipe(quant), out=out, options=GgufOptions(**options))
    emit(export.files)
    return export


def poison(folder: Path, value: float) -> None:
    """Put one value into the last matrix of the model."""
    path = folder / "model.safetensors"
    tensors = {name: tensor.copy() for name, tensor in load_file(path).items()}
    tensors["model.layers.1.mlp.down_proj.weight"][-1, -1] = value
    save_file(tensors, path)


NOT_LLAMA_CPPS = ("moe_shares_as_they_are", "moe_with_dense_layers")
CASES = [(name, "q4_k_m") for name in VARIANTS if name not in NOT_LLAMA_CPPS]
CASES += [("moe", quant) for quant in ("f32", "f16", "bf16", "q8_0", "iq4_xs")]


@pytest.mark.parametrize(("name", "quant"), CASES)
def test_gguf_py_reads_what_was_planned(name: str, quant: str, model_folder, tmp_path: Path) -> None:
    export = exported(load(model_folder(name)), tmp_path / "out.gguf", quant)
    reader = gguf.GGUFReader(tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").stat().st_size == export.num_bytes
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == [tensor.name for tensor in export.tensors]
    for tensor in export.tensors:
        stored = found[tensor.name]
        assert {stored.tensor_type.name} == {export.formats[member.name].name for member in tensor.members}
        assert tuple(int(size) for size in stored.shape[::-1]) == tensor.shape
        assert stored.data_offset % 32 == 0
        values = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(tensor.shape)
        quantized = [export.graph.weights[member.name].read() for member in tensor.members]
        np.testing.assert_array_equal(values, np.stack(quantized) if tensor.is_stacked else quantized[0])


def test_float_recipes_keep_every_value(model_folder, tmp_path: Path) -> None:
    model = load(model_folder("moe"))
    export = exported(model, tmp_path / "out.gguf", "f32")
    for weight in model.graph:
        np.testing.assert_array_equal(export.graph.weights[weight.name].read(), weight.read())


@pytest.mark.parametrize("threads", [1, 3])
def test_bytes_are_the_same_from_run_to_run(threads: int, demo_folder: Path, tmp_path: Path, monkeypatch) -> None:
    export = prepare(load(demo_folder), find_recipe("q4_k_m"), out=tmp_path / "a.gguf")
    emit(export.files)
    monkeypatch.setattr(emit_module, "WEIGHTS_PER_BLOCK", 5000)
    again = prepare(load(demo_folder), find_recipe("q4_k_m"), out=tmp_path / "b.gguf")
    emit(again.files, threads=threads)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_split_files_hold_the_same_tensors(demo_folder: Path, tmp_path: Path) -> None:
    model = load(demo_folder)
    whole = exported(model, tmp_path / "whole.gguf")
    parts = exported(model, tmp_path / "parts.gguf", split_max_size=2_000_000)
    names = sorted(path.name for path in tmp_path.glob("parts*"))
    count = len(parts.files)
    assert count == 3
    assert names == [f"parts-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1)]
    readers = [gguf.GGUFReader(file.path) for file in parts.files]
    for i, reader in enumerate(readers):
        assert reader.fields["split.no"].contents() == i
        assert reader.fields["split.count"].contents() == count
        assert reader.fields["split.tensors.count"].contents() == len(whole.tensors)
    joined = {tensor.name: bytes(tensor.data) for reader in readers for tensor in reader.tensors}
    single = {tensor.name: bytes(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "whole.gguf").tensors}
    assert joined == single
    assert sum(reader.fields.get("tokenizer.ggml.tokens") is not None for reader in readers) == 1


def test_split_that_is_large_enough_is_one_plain_file(demo_folder: Path, tmp_path: Path) -> None:
    export = exported(load(demo_folder), tmp_path / "one.gguf", split_max_size=10**9)
    assert [file.path.name for file in export.files] == ["one.gguf"]
    assert "split.no" not in gguf.GGUFReader(tmp_path / "one.gguf").fields


def test_split_smaller_than_a_tensor_is_refused(demo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="token_embd"):
        prepare(
            load(demo_folder),
            find_recipe("q4_k_m"),
            out=tmp_path / "a.gguf",
            options=GgufOptions(split_max_size=100_000),
        )


def test_nan_stops_the_export_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "f32")
    poison(folder, np.nan)
    export = prepare(load(folder), find_recipe("q8_0"), out=tmp_path / "a.gguf")
    with pytest.raises(CheckpointError, match="NaN or Inf"):
        emit(export.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_f16_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", "f32")
    poison(folder, 1e6)
    export = prepare(load(folder), find_recipe("f16"), out=tmp_path / "a.gguf")
    with pytest.raises(QuantizationError, match="down_proj"):
        emit(export.files)


def test_a_disk_that_fills_while_writing(demo_folder: Path, tmp_path: Path, monkeypatch) -> None:
    export = prepare(load(demo_folder), find_recipe("q8_0"), out=tmp_path / "a.gguf")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OutputError, match="disk is full"):
        emit(export.files)
    assert list(tmp_path.iterdir()) == []


def test_every_format_has_gguf_pys_number_and_size() -> None:
    for name, number_format in FORMATS.items():
        theirs = gguf.GGMLQuantizationType[name]
        assert TYPE_IDS[name] == theirs.value
        size = number_format.block_size
        assert (size, number_format.row_bytes(size)) == gguf.GGML_QUANT_SIZES[theirs]
