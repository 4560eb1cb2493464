"""Folders of onnxruntime-genai's own builder: read by their names, checked like ours, or by what they do."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("onnxruntime_genai")
pytest.importorskip("transformers")
pytest.importorskip("onnx")

import onnx

from qwen3_export.api import check
from qwen3_export.checkpoint.model import load
from qwen3_export.targets.onnx import doors
from qwen3_export.targets.onnx.foreign import own_names


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Callable[[str], Path]:
    """The demo by the builder, in a number type of its own."""
    root = tmp_path_factory.mktemp("builder")

    def make(precision: str) -> Path:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", str(demo_folder)]
        command += ["-o", str(root / precision), "-p", precision, "-e", "cpu", "-c", str(root / "cache")]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        return root / precision

    return cache(make)


def test_an_int4_folder_is_checked_in_full(built: Callable[[str], Path]) -> None:
    model = load("demo")
    report = check(built("int4"), model)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-9
    assert (report.recipe, report.method) == ("unknown", "unknown")


def test_a_broken_one_is_placed_by_the_builder_s_names(built: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copytree(built("int4"), tmp_path / "out")
    path = tmp_path / "out" / "model.onnx"
    proto = onnx.load(str(path), load_external_data=False)
    gate, up = (
        next(node for node in proto.graph.node if node.name == f"/model/layers.2/mlp/{name}_proj/MatMul_Q4")
        for name in ("gate", "up")
    )
    for i in (1, 2):
        gate.input[i], up.input[i] = up.input[i], gate.input[i]
    path.write_bytes(proto.SerializeToString())
    report = check(tmp_path / "out", load("demo"))
    where = report.first_divergence
    assert where is not None
    assert (where.layer, where.site, where.cause) == (2, "mlp", "gate_proj and up_proj are swapped")


def test_what_cannot_be_read_is_judged_by_what_it_does(built: Callable[[str], Path]) -> None:
    """The builder's fp32 matrices lie the other way round, for MatMul."""
    report = check(built("fp32"), load("demo"))
    assert report.verdict == "not_run"
    assert report.end_to_end.mean_kld is not None
    assert report.end_to_end.mean_kld < 1e-9
    assert any("weights cannot be read" in reason for reason in report.reasons)


def test_names() -> None:
    found = own_names(
        [
            "model.layers.3.attn.qkv_proj.MatMul.weight_Q4",
            "model.layers.3.attn.k_norm.layernorm.weight",
            "model.layers.3.mlp.down_proj.MatMul.weight_scales",
            "model.layers.6.final_norm_layernorm.weight",
            "lm_head.MatMul.weight_Q8",
            "model.layers.3.self_attn.o_proj.weight_codes",
        ]
    )
    assert list(found.values()) == [
        "model.layers.3.self_attn.qkv_proj.weight_codes",
        "model.layers.3.self_attn.k_norm.weight",
        "model.layers.3.mlp.down_proj.weight_scales",
        "model.norm.weight",
        "model.embed_tokens.weight_codes",
        "model.layers.3.self_attn.o_proj.weight_codes",
    ]


def test_lint_does_not_call_unknown_names_errors(built: Callable[[str], Path]) -> None:
    found = list(doors.lint(built("fp32"), load("demo"))[1])
    assert [finding.text for finding in found if finding.is_error] == []
    assert any("cannot be told by their names" in finding.text for finding in found)


def anonymous(written: Any, out: Path, *, is_single: bool) -> Path:
    """The export as another tool would write it: names that say nothing, attention by other operators, no metadata.

    GroupQueryAttention goes into a function of the model, which onnxruntime unfolds.
    """
    shutil.copytree(written.folder, out)
    path = out / "model.onnx"
    proto = onnx.load(str(path), load_external_data=is_single)
    names = {tensor.name: f"onnx::MatMul_{i}" for i, tensor in enumerate(proto.graph.initializer)}
    for tensor in proto.graph.initializer:
        tensor.name = names[tensor.name]
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    attention = [node for node in proto.graph.node if node.op_type == "GroupQueryAttention"]
    inner = onnx.NodeProto()
    inner.CopyFrom(attention[0])
    inputs, outputs = [f"i{i}" for i in range(len(inner.input))], [f"o{i}" for i in range(len(inner.output))]
    inner.input[:], inner.output[:] = inputs, outputs
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    proto.functions.append(onnx.helper.make_function("other", "Attend", inputs, outputs, [inner], opsets))
    proto.opset_import.append(onnx.helper.make_opsetid("other", 1))
    for node in attention:
        node.op_type, node.domain = "Attend", "other"
        del node.attribute[:]
    del proto.metadata_props[:]
    path.write_bytes(proto.SerializeToString())
    if is_single:
        (out / "model.onnx.data").unlink()
    (out / "genai_config.json").unlink()
    return out


@pytest.mark.parametrize("is_single", [False, True])
def test_a_graph_of_other_names_and_operators(exported: Callable[..., Any], tmp_path: Path, is_single: bool) -> None:
    """As Optimum writes them: with external data, and as one file."""
    written = exported("tied", "fp32")
    folder = anonymous(written, tmp_path / "other", is_single=is_single)
    report = check(folder, written.model)
    assert report.verdict == "not_run", report.reasons
    assert report.end_to_end.mean_kld is not None
    assert report.end_to_end.mean_kld < 1e-9
    assert report.metadata == ()
    found = list(doors.lint(folder, written.model)[1])
    assert [finding.text for finding in found if finding.is_error] == [
        "genai_config.json is missing, or cannot be read"
    ]
