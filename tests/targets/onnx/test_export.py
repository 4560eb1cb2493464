"""What a folder holds: the same bytes every time, the codes that were chosen, and what official readers accept."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

import onnx

from qwen3_export.calibration.solving import solve
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import load
from qwen3_export.errors import OptionError, QuantizationError
from qwen3_export.targets.onnx.export import prepare, with_solution, write
from qwen3_export.targets.onnx.read import open_onnx, read_graph
from qwen3_export.targets.onnx.recipes import RECIPES, find_recipe
from qwen3_export.targets.onnx.target import OnnxOptions


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_bytes_for_any_number_of_threads(exported: Callable[..., Any], tmp_path: Path) -> None:
    written = exported("moe", "int4")
    again = replace(written.export, out=tmp_path / "again")
    write(again, threads=1)
    assert files(again.out) == files(written.folder)


def test_what_is_read_back_is_what_was_rounded(exported: Callable[..., Any]) -> None:
    for variant, recipe, options in [
        ("moe", "int4", {"asymmetric": True}),
        ("untied", "int4_int8", {"group_size": 64}),
        ("tied", "fp16", {}),
    ]:
        written = exported(variant, recipe, **options)
        stored = read_graph(open_onnx(written.folder), written.model.graph)
        for weight in written.export.graph:
            np.testing.assert_array_equal(stored.weights[weight.name].read(), weight.read(), err_msg=weight.name)
            rows = slice(3, 9)
            np.testing.assert_array_equal(stored.weights[weight.name].read(rows), weight.read(rows))


def test_solved_codes_arrive_unchanged(text: Path, tmp_path: Path) -> None:
    """GPTQ's codes, scales and zero points, bit for bit; and AWQ's, with the scales it moved written down."""
    model = load("demo")
    model = replace(model, graph=model.graph.truncated(0, 1))
    calibration = read_calibration(text, model.tokenizer, sequence_length=128, num_samples=8)
    for method, is_symmetric in (("gptq", False), ("awq", True)):
        export = prepare(
            model, find_recipe("int4"), out=tmp_path / method, options=OnnxOptions(asymmetric=not is_symmetric)
        )
        solution = solve(method, model.graph, export.weight_formats, calibration, work_dir=tmp_path / "work")
        solved = with_solution(export, solution)
        write(solved)
        stored = read_graph(open_onnx(solved.out), model.graph)
        for name, number_format in solved.formats.items():
            if number_format.is_float:
                continue
            codes, params = solution.graph.weights[name].encode()  # type: ignore[attr-defined]
            found_codes, found_params = stored.weights[name].encode()  # type: ignore[attr-defined]
            np.testing.assert_array_equal(found_codes, codes)
            np.testing.assert_array_equal(found_params.scale_RG, params.scale_RG)
            np.testing.assert_array_equal(found_params.zero_point_RG, params.zero_point_RG)
        metadata = open_onnx(solved.out).metadata
        assert metadata["qwen3_export.method"] == method
        assert json.loads(metadata["qwen3_export.calibration"])["sha256"] == calibration.digest
        assert ("qwen3_export.scales" in metadata) == (method == "awq")


def test_a_tied_embedding_is_stored_once(exported: Callable[..., Any]) -> None:
    written = exported("tied", "int4")
    proto = open_onnx(written.folder).proto
    offsets = {
        tensor.name: next(entry.value for entry in tensor.external_data if entry.key == "offset")
        for tensor in proto.graph.initializer
        if tensor.name.startswith("model.embed_tokens.")
    }
    assert offsets["model.embed_tokens.weight_rows"] == offsets["model.embed_tokens.weight_codes"]
    assert len(set(offsets.values())) == 2
    vocabulary, hidden = written.model.graph.head.shape
    assert written.export.plan.num_bytes < written.model.graph.num_parameters * 5.1 / 8 + 2 * 4 * 2048 * 32 + 10_000
    assert written.export.plan.initializers["model.embed_tokens"]["weight_codes"].shape == (
        vocabulary,
        hidden // 32,
        16,
    )


def test_the_official_checker_accepts_the_graph(exported: Callable[..., Any]) -> None:
    """Once it knows the one operator of the default domain that is onnxruntime's own."""
    schema = onnx.defs.OpSchema
    known = schema(
        "SimplifiedLayerNormalization",
        "",
        1,
        inputs=[schema.FormalParameter("X", "T"), schema.FormalParameter("scale", "T")],
        outputs=[schema.FormalParameter("Y", "T")],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)"], "")],
        attributes=[
            schema.Attribute("axis", schema.AttrType.INT, required=False),
            schema.Attribute("epsilon", schema.AttrType.FLOAT, required=False),
            schema.Attribute("stash_type", schema.AttrType.INT, required=False),
        ],
    )
    onnx.defs.register_schema(known)
    try:
        for variant, recipe, options in [("tied", "int4", {}), ("yarn", "fp32", {"flavour": "transformers.js"})]:
            written = exported(variant, recipe, **options)
            onnx.checker.check_model(str(written.folder / written.export.graph_file))
    finally:
        onnx.defs.deregister_schema("SimplifiedLayerNormalization", 1, "")


def test_what_cannot_be_stored_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    narrow = load(model_folder("rows_of_72"))
    with pytest.raises(QuantizationError, match=r"is not a multiple of `group_size` 32; use|can only be stored"):
        prepare(narrow, find_recipe("int4"), out=out)
    tied = load(model_folder("tied"))
    with pytest.raises(OptionError, match="`group_size` 48: use one of 16, 32, 64, 128, 256"):
        prepare(tied, find_recipe("int4"), out=out, options=OnnxOptions(group_size=48))
    with pytest.raises(OptionError, match="`accuracy_level` 5: use one of 0, 1, 2, 3, 4"):
        prepare(tied, find_recipe("int4"), out=out, options=OnnxOptions(accuracy_level=5))
    with pytest.raises(QuantizationError, match="no fp16 mixture of experts"):
        prepare(load(model_folder("moe")), find_recipe("fp16"), out=out)
    with pytest.raises(QuantizationError, match="not an ONNX recipe"):
        find_recipe("q4_k_m")
    assert find_recipe("Q4F16") is RECIPES["int4_fp16"]
    assert not out.exists()
