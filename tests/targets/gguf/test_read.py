"""Files read back: values, splits, stacked experts, metadata, and files by other writers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CheckpointError
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import GgufExport, prepare
from qwen3_export.targets.gguf.metadata_check import metadata_differences
from qwen3_export.targets.gguf.read import GgufWeight, open_gguf, read_graph, tensor_differences
from qwen3_export.targets.gguf.recipes import find_recipe
from qwen3_export.targets.gguf.target import GgufOptions
from qwen3_export.targets.gguf.values import check_values


def exported(model: Model, path: Path, quant: str, **options: object) -> GgufExport:
    export = prepare(model, find_recipe(quant), out=path, options=GgufOptions(**options))
    emit(export.files)
    return export


@pytest.mark.parametrize(
    ("name", "quant"), [("tied", "q4_k_m"), ("moe", "q5_k_m"), ("rows_of_72", "q8_0"), ("yarn", "q6_k")]
)
def test_values_come_back_as_they_were_quantized(
    model_folder: Callable[[str], Path], tmp_path: Path, name: str, quant: str
) -> None:
    model = load(model_folder(name))
    export = exported(model, tmp_path / "out.gguf", quant)
    file = open_gguf(tmp_path / "out.gguf")
    own, oracle = read_graph(file, model.graph), read_graph(file, model.graph, decoder="gguf-py")
    assert list(own.weights) == list(model.graph.weights)
    for weight in own:
        expected = export.graph.weights[weight.name].read()
        np.testing.assert_array_equal(weight.read(), expected)
        np.testing.assert_array_equal(oracle.weights[weight.name].read(), expected)
        np.testing.assert_array_equal(weight.read(slice(3, 9)), expected[3:9])
        assert weight.format == export.graph.weights[weight.name].format
    assert tensor_differences(file, model.graph) == []
    assert metadata_differences(file.metadata, model.graph, model.tokenizer) == []
    assert check_values(own, model.graph, is_full=True).differences == ()


def test_parts_of_a_split_file_are_one_file(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load(model_folder("tied"))
    exported(model, tmp_path / "whole.gguf", "q8_0")
    exported(model, tmp_path / "part.gguf", "q8_0", split_max_size=3 << 20)
    whole, parts = open_gguf(tmp_path / "whole.gguf"), sorted(tmp_path.glob("part-*.gguf"))
    assert len(parts) > 1
    for part in (parts[0], parts[-1]):
        split = open_gguf(part)
        assert split.tensors.keys() == whole.tensors.keys()
        assert metadata_differences(split.metadata, model.graph, model.tokenizer) == []
        assert split.bits_per_weight == whole.bits_per_weight
    for weight in read_graph(open_gguf(parts[1]), model.graph):
        np.testing.assert_array_equal(weight.read(), read_graph(whole, model.graph).weights[weight.name].read())
    parts[1].unlink()
    with pytest.raises(CheckpointError, match="is missing; a split file needs all"):
        open_gguf(parts[0])


def test_a_file_by_llama_cpp_can_be_read(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    llama_cpp = pytest.importorskip("llama_cpp.llama_cpp")
    model = load(model_folder("tied"))
    exported(model, tmp_path / "f32.gguf", "f32")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = find_recipe("q4_k_m").file_type, 1
    paths = [str(tmp_path / name).encode() for name in ("f32.gguf", "theirs.gguf")]
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    file = open_gguf(tmp_path / "theirs.gguf")
    assert metadata_differences(file.metadata, model.graph, model.tokenizer) == []
    assert check_values(read_graph(file, model.graph), model.graph, is_full=True).differences == ()


def test_differences_in_tensors_are_sentences(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    tied, untied = load(model_folder("tied")), load(model_folder("untied"))
    exported(tied, tmp_path / "tied.gguf", "q8_0")
    exported(untied, tmp_path / "untied.gguf", "q8_0")
    tied_file, untied_file = open_gguf(tmp_path / "tied.gguf"), open_gguf(tmp_path / "untied.gguf")
    assert tensor_differences(tied_file, untied.graph) == ["tensor output.weight is missing"]
    assert tensor_differences(untied_file, tied.graph) == ["tensor output.weight is not part of the model"]
    smaller = load(model_folder("rows_of_72"))
    assert "tensor token_embd.weight has shape [8192, 256], the checkpoint [8192, 72]" in tensor_differences(
        tied_file, smaller.graph
    )
    with pytest.raises(CheckpointError, match=r"output\.weight is missing"):
        read_graph(tied_file, untied.graph)


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a gguf file, but long enough to look at"])
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_gguf(path)


def test_a_file_cut_short_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load(model_folder("tied"))
    path = tmp_path / "cut.gguf"
    exported(model, path, "q8_0")
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(CheckpointError, match="cut short"):
        open_gguf(path)


def test_a_decoder_that_disagrees_with_gguf_py_is_seen(
    model_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(model_folder("tied"))
    exported(model, tmp_path / "out.gguf", "q8_0")
    stored = read_graph(open_gguf(tmp_path / "out.gguf"), model.graph)
    right = GgufWeight.read

    def slightly_off(weight: GgufWeight, rows: slice = slice(None)) -> np.ndarray:
        values = right(weight, rows)
        return values * np.float32(1 + 2e-7) if weight.decoder == "own" and weight.format == "Q8_0" else values

    monkeypatch.setattr(GgufWeight, "read", slightly_off)
    assert "decoded otherwise by gguf-py" in check_values(stored, model.graph, is_full=False).differences[0]
