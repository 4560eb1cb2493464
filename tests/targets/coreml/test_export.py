"""What a folder holds: the same bytes every time, the codes that were chosen, and what coremltools loads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from qwen3_export.calibration.solving import solve
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import load
from qwen3_export.errors import MissingExtraError, OptionError, OutputError, QuantizationError, UnsupportedModelError
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F16, F32
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.targets.coreml.export import default_path, is_export_file, prepare, with_solution, write
from qwen3_export.targets.coreml.names import PACKAGE, mil_name
from qwen3_export.targets.coreml.read import open_coreml, read_graph, read_package
from qwen3_export.targets.coreml.recipes import RECIPES, assign, find_recipe
from qwen3_export.targets.coreml.target import CoremlOptions


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_bytes_for_any_number_of_threads(packaged: Callable[..., Any], tmp_path: Path) -> None:
    for variant, recipe in (("tied", "palette4"), ("rows_of_320", "int4")):
        written = packaged(variant, recipe)
        again = replace(written.export, out=tmp_path / f"{variant}-again")
        write(again, threads=3)
        assert files(again.out) == files(written.folder)


@pytest.mark.parametrize("recipe", RECIPES)
def test_coremltools_loads_what_was_rounded(recipe: str, packaged: Callable[..., Any]) -> None:
    """Its loader rebuilds the program with every type checked, and decodes the constants itself."""
    from coremltools.converters.mil.frontend.milproto.load import load as load_program
    from coremltools.models import MLModel

    written = packaged("rows_of_320" if recipe == "int4" else "rows_of_72", recipe)
    model = MLModel(str(written.export.package), skip_model_load=True)
    spec = model.get_spec()
    assert spec.specificationVersion == 9
    program = load_program(spec, spec.specificationVersion, model.weights_dir)
    values = {operation.outputs[0].name: operation for operation in program.functions["main"].operations}
    for weight in written.export.graph:
        operation = values[mil_name(weight.name)]
        is_constexpr = operation.op_type.startswith("constexpr_")
        found = operation.materialized_val_inference() if is_constexpr else operation.outputs[0].val
        assert is_constexpr == (RECIPES[recipe].is_quantized and len(weight.shape) == 2)
        expected = weight.read()
        # coremltools multiplies scale and code in the scale's type.
        expected = expected if recipe == "fp32" else expected.astype(np.float16)
        np.testing.assert_array_equal(found, expected, err_msg=weight.name)


def test_what_is_read_back_is_what_was_rounded(packaged: Callable[..., Any]) -> None:
    for variant, recipe, options in [
        ("tied", "fp16", {}),
        ("tied", "int4", {"group_size": 64, "split_lm_head": 4096}),
        ("rows_of_72", "int4", {"channelwise": True}),
        ("untied", "palette6", {"split_lm_head": 3200}),
        ("added_tokens", "palette4", {}),
    ]:
        written = packaged(variant, recipe, **options)
        stored, metadata = read_package(written.folder, written.model.graph)
        assert metadata["qwen3_export.recipe"] == recipe
        for weight in written.export.graph:
            found = stored.weights[weight.name]
            assert found.format == weight.format
            np.testing.assert_array_equal(found.read(), weight.read(), err_msg=weight.name)
            for rows in (slice(3, 9), slice(weight.shape[0] - 3, weight.shape[0])):
                np.testing.assert_array_equal(found.read(rows), weight.read(rows))


def test_a_split_head_is_read_across_its_parts(packaged: Callable[..., Any]) -> None:
    for recipe in ("fp16", "int8", "palette4"):
        written = packaged("untied", recipe, split_lm_head=3200)
        head = read_graph(open_coreml(written.folder), written.model.graph).head
        rows = slice(3196, 6404)
        np.testing.assert_array_equal(head.read(rows), written.export.graph.head.read(rows))
        if recipe != "fp16":
            whole = slice(3192, 6408)
            codes, params = head.encode(whole)  # type: ignore[attr-defined]
            expected_codes, expected = written.export.graph.head.encode(whole)
            np.testing.assert_array_equal(codes, expected_codes)
            part = "table_LE" if recipe == "palette4" else "scale_RG"
            np.testing.assert_array_equal(getattr(params, part), getattr(expected, part))


@pytest.mark.parametrize(("method", "recipe"), [("gptq", "int4"), ("gptq", "palette4"), ("awq", "int8")])
def test_solved_codes_arrive_unchanged(method: str, recipe: str, text: Path, tmp_path: Path) -> None:
    """Codes, scales and tables, bit for bit; and what AWQ moved is written down."""
    model = load("demo")
    model = replace(model, graph=model.graph.truncated(0, 1))
    calibration = read_calibration(text, model.tokenizer, sequence_length=128, num_samples=8)
    export = prepare(model, find_recipe(recipe), out=tmp_path / "out")
    solution = solve(method, model.graph, export.weight_formats, calibration, work_dir=tmp_path / "work")
    solved = with_solution(export, solution)
    write(solved)
    stored, metadata = read_package(solved.out, model.graph)
    for name, number_format in solved.formats.items():
        if number_format.is_float:
            continue
        codes, params = solution.graph.weights[name].encode()  # type: ignore[attr-defined]
        found_codes, found_params = stored.weights[name].encode()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found_codes, codes)
        part = "table_LE" if isinstance(number_format, PaletteFormat) else "scale_RG"
        np.testing.assert_array_equal(getattr(found_params, part), getattr(params, part))
    assert metadata["qwen3_export.method"] == method
    assert json.loads(metadata["qwen3_export.calibration"])["sha256"] == calibration.digest
    assert ("qwen3_export.scales" in metadata) == (method == "awq")


def test_a_tied_embedding_is_stored_once(packaged: Callable[..., Any]) -> None:
    written = packaged("tied", "int4", group_size=64)
    embedding = mil_name("model.embed_tokens")
    readers = [
        operation.type
        for operation in open_coreml(written.folder).operations
        for argument in operation.inputs.values()
        if any(binding.name == embedding for binding in argument.arguments)
    ]
    assert sorted(readers) == ["gather", "linear"]
    assert written.export.bits_per_weight < 4.3
    split = packaged("tied", "int4", group_size=64, split_lm_head=4096).export
    vocabulary, hidden = written.model.graph.head.shape
    assert 0 < split.num_bytes - written.export.num_bytes - vocabulary * hidden * 4.25 / 8 < 10_000
    assert split.num_weights == written.export.num_weights + vocabulary * hidden


def test_what_swift_transformers_looks_for(packaged: Callable[..., Any]) -> None:
    written = packaged("tied", "int4", group_size=64)
    description = open_coreml(written.folder).spec.description
    assert [feature.name for feature in description.input] == ["inputIds", "attentionMask"]
    assert [feature.name for feature in description.state] == ["keyCache", "valueCache"]
    assert [feature.name for feature in description.output] == ["logits"]
    for feature, expected in zip(
        description.input, ([(1, 1), (1, 2048)], [(1, 1), (1, 1), (1, 1), (2, 2049)]), strict=True
    ):
        ranges = feature.type.multiArrayType.shapeRange.sizeRanges
        assert [(size.lowerBound, size.upperBound) for size in ranges] == expected
    assert list(description.state[0].type.stateType.arrayType.shape) == [2, 1, 2, 2048, 64]
    metadata = description.metadata.userDefined
    assert metadata["co.huggingface.exporters.name"] == written.model.source
    beside = {path.name for path in written.folder.iterdir()}
    assert beside >= {"model.mlpackage", "tokenizer.json", "tokenizer_config.json", "config.json"}
    assert all(is_export_file(name) for name in files(written.folder))
    assert not is_export_file("holiday.jpg")
    assert str(default_path(written.model, written.export.recipe)) == f"{written.model.name}-coreml-int4"


def test_states_are_a_multiple_of_32_positions(packaged: Callable[..., Any]) -> None:
    written = packaged("rows_of_72", "fp32", context_length=100)
    state = open_coreml(written.folder).spec.description.state[0].type.stateType.arrayType
    assert list(state.shape) == [2, 1, 2, 128, 20]
    assert written.export.context_length == 100


def test_formats_of_every_recipe(model_graph: Callable[[str], Any]) -> None:
    graph = model_graph("tied")
    name = "model.layers.0.mlp.up_proj"
    assert assign(graph, RECIPES["int4"], group_size=64)[name] == AffineFormat(
        num_bits=4, group_size=64, scale_dtype="f16"
    )
    assert assign(graph, RECIPES["int4"], channelwise=True)[name] == RECIPES_INT4_CHANNEL
    assert assign(graph, RECIPES["palette4"])[name] == PaletteFormat(num_bits=4, rows_per_table=8)
    assert assign(graph, RECIPES["int8"])["model.norm"] == F16
    assert set(assign(graph, RECIPES["fp32"]).values()) == {F32}
    # 8185 rows are divisible by 5, and by nothing else up to 8.
    odd = assign(model_graph("added_tokens"), RECIPES["palette4"])["model.embed_tokens"]
    assert odd == PaletteFormat(num_bits=4, rows_per_table=5)


RECIPES_INT4_CHANNEL = AffineFormat(num_bits=4, group_size=None, scale_dtype="f16")


def test_what_cannot_be_exported_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out, tied = tmp_path / "out", load(model_folder("tied"))
    with pytest.raises(UnsupportedModelError, match="a mixture of experts cannot be exported to Core ML"):
        prepare(load(model_folder("moe")), find_recipe("int4"), out=out)
    with pytest.raises(QuantizationError, match="in_features 72 is not a multiple of `group_size` 32; use `channelw"):
        prepare(load(model_folder("rows_of_72")), find_recipe("int4"), out=out)
    for options, told in [
        ({"group_size": 48}, "`group_size` 48: use one of 16, 32, 64, 128, 256"),
        ({"context_length": 4096}, "must be from 3 to the model's 2048"),
        ({"context_length": 2}, "must be from 3"),
        ({"split_lm_head": 1001}, "`split_lm_head` 1001: must be a multiple of 8"),
        ({"mask": "causalMask"}, "`mask` causalMask: use one of attentionMask, fullAttentionMask"),
        ({"target": "iOS17"}, "`target` iOS17: use one of iOS18, macOS15"),
    ]:
        with pytest.raises((OptionError, QuantizationError), match=told):
            prepare(tied, find_recipe("int4"), out=out, options=CoremlOptions(**options))
    with pytest.raises(QuantizationError, match="not a Core ML recipe; use one of fp32, fp16"):
        find_recipe("q4_k_m")
    assert find_recipe("Palette4") is RECIPES["palette4"]
    assert not out.exists()


def test_without_coremltools_the_extra_is_named(
    packaged: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = packaged("tied", "fp16")
    monkeypatch.setitem(sys.modules, "coremltools", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'qwen3-export\[coreml\]'"):
        prepare(written.model, written.export.recipe, out=tmp_path / "out")
    with pytest.raises(MissingExtraError, match="reading a Core ML package needs coremltools"):
        open_coreml(written.folder)


def test_an_earlier_export_is_replaced_and_nothing_else(packaged: Callable[..., Any], tmp_path: Path) -> None:
    export = replace(packaged("tied", "fp16").export, out=tmp_path / "out")
    write(export)
    first = files(export.out)
    with pytest.raises(OutputError, match="exists already and is not empty"):
        write(export)
    write(export, overwrite=True)
    assert files(export.out) == first
    for foreign in ("notes.txt", f"{PACKAGE}/Data/notes.txt"):
        (export.out / foreign).write_text("mine")
        with pytest.raises(OutputError, match=rf"holds {foreign}"):
            write(export, overwrite=True)
        (export.out / foreign).unlink()


def test_a_full_disk_leaves_nothing_behind(packaged: Callable[..., Any], tmp_path: Path) -> None:
    export = replace(packaged("tied", "fp16").export, out=tmp_path / "out")
    huge = replace(export, plan=replace(export.plan, num_bytes=1 << 60))
    with pytest.raises(OutputError, match="the disk is full"):
        write(huge)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_folder_that_cannot_be_written(packaged: Callable[..., Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="cannot be written"):
        write(replace(packaged("tied", "fp16").export, out=tmp_path / "out"))
