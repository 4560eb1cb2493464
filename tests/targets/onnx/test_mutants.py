"""Folders broken on purpose, each in one way: the check must catch every one, and say where."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import checked

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

import onnx

from qwen3_export.errors import CheckpointError
from qwen3_export.parity.report import Report

Edit = Callable[[Any], None]
Caught = Callable[[str, Report], None]


def nodes(proto: Any, op_type: str) -> list[Any]:
    return [node for node in proto.graph.node if node.op_type == op_type]


def set_attribute(node: Any, name: str, value: object) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])


def wrong_eps(proto: Any) -> None:
    for node in nodes(proto, "SkipSimplifiedLayerNormalization"):
        set_attribute(node, "epsilon", 1e-5)


def swapped_head_norms(proto: Any) -> None:
    for node in nodes(proto, "SimplifiedLayerNormalization"):
        for a, b in (("q_norm", "k_norm"), ("k_norm", "q_norm")):
            if f".{a}.weight" in node.input[1]:
                node.input[1] = node.input[1].replace(a, b)
                break


def interleaved_rope(proto: Any) -> None:
    for node in nodes(proto, "GroupQueryAttention"):
        set_attribute(node, "rotary_interleaved", 1)


def no_k_norm(proto: Any) -> None:
    renamed = {}
    for node in nodes(proto, "SimplifiedLayerNormalization"):
        if ".k_norm." in node.input[1]:
            renamed[node.output[0]] = node.input[0]
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)


def swapped_gate_and_up(proto: Any) -> None:
    for node in nodes(proto, "MatMulNBits"):
        for i, name in enumerate(node.input):
            if ".gate_proj." in name:
                node.input[i] = name.replace("gate_proj", "up_proj")
            elif ".up_proj." in name:
                node.input[i] = name.replace("up_proj", "gate_proj")


def fewer_experts(proto: Any) -> None:
    for node in nodes(proto, "QMoE"):
        set_attribute(node, "k", 2)


@pytest.mark.parametrize(
    ("edit", "site"),
    [(swapped_head_norms, "k_rope"), (interleaved_rope, "k_rope"), (no_k_norm, "k_rope"), (swapped_gate_and_up, "mlp")],
)
def test_wrong_wiring_is_found_and_placed(
    check_edited: Callable[..., Report], caught: Caught, edit: Edit, site: str
) -> None:
    report = check_edited(edit)
    caught(edit.__name__.replace("_", " "), report)
    assert report.conversion.status == "fail"
    assert report.first_divergence is not None
    assert (report.first_divergence.layer, report.first_divergence.site) == (0, site)


def test_a_wrong_eps_is_found_twice(check_edited: Callable[..., Report], caught: Caught) -> None:
    report = check_edited(wrong_eps)
    caught("eps of 1e-5", report)
    assert "epsilon is 9.9" in report.metadata[0]
    assert report.conversion.status == "fail"


def test_wrong_experts(check_edited: Callable[..., Report], caught: Caught) -> None:
    report = check_edited(fewer_experts, variant="moe")
    caught("an expert too few", report)
    assert "k is 2, the checkpoint has 3" in report.metadata[0]
    assert report.conversion.status == "fail"
    assert report.first_divergence is not None
    assert report.first_divergence.site == "mlp"


def newer_opset(proto: Any) -> None:
    for opset in proto.opset_import:
        if opset.domain == "":
            opset.version = 99


def test_an_opset_that_this_onnxruntime_lacks(check_edited: Callable[..., Report], caught: Caught) -> None:
    report = check_edited(newer_opset)
    caught("an opset of the future", report)
    assert report.verdict == "fail"
    assert "onnxruntime cannot load it" in report.metadata[-1]
    assert "99" in report.metadata[-1]


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [("eos_token_id", 0, "eos_token_id"), ("context_length", 4, "context_length"), ("vocab_size", 5, "vocab_size")],
)
def test_a_wrong_genai_config(
    exported: Callable[..., Any], tmp_path: Path, caught: Caught, key: str, value: int, told: str
) -> None:
    written = exported("tied", "fp32")
    shutil.copytree(written.folder, tmp_path / "edited")
    path = tmp_path / "edited" / "genai_config.json"
    document = json.loads(path.read_text())
    document["model"][key] = value
    path.write_text(json.dumps(document))
    report = checked("onnx", tmp_path / "edited", written.model.graph, written.model.tokenizer)
    caught(f"a wrong {key} in genai_config.json", report)
    assert report.verdict == "fail"
    assert told in report.metadata[0]


def test_damaged_codes_and_another_model(exported: Callable[..., Any], tmp_path: Path, caught: Caught) -> None:
    written = exported("tied", "int4")
    shutil.copytree(written.folder, tmp_path / "edited")
    place = written.export.plan.initializers["model.layers.1.mlp.down_proj"]["weight_codes"]
    with (tmp_path / "edited" / "model.onnx.data").open("r+b") as file:
        file.seek(place.offset + 3 * place.row_bytes)
        file.write(b"\xff" * 16)
    report = checked("onnx", tmp_path / "edited", written.model.graph, written.model.tokenizer)
    caught("one damaged block", report)
    assert "model.layers.1.mlp.down_proj: a block of row 3" in report.values[0]
    other = exported("untied", "int4").model
    report = checked("onnx", written.folder, other.graph, other.tokenizer)
    assert any("lm_head is missing" in sentence for sentence in report.metadata)


def test_what_cannot_be_read_is_refused(exported: Callable[..., Any], tmp_path: Path) -> None:
    written = exported("tied", "int4")
    shutil.copytree(written.folder, tmp_path / "cut")
    data = tmp_path / "cut" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="cut short"):
        checked("onnx", tmp_path / "cut", written.model.graph, written.model.tokenizer)
    data.unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checked("onnx", tmp_path / "cut", written.model.graph, written.model.tokenizer)
    (tmp_path / "cut" / "model.onnx").write_bytes(b"no graph at all")
    with pytest.raises(CheckpointError, match="no ONNX graph"):
        checked("onnx", tmp_path / "cut", written.model.graph, written.model.tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no \.onnx file"):
        checked("onnx", tmp_path / "empty", written.model.graph, written.model.tokenizer)
