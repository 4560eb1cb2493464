"""The transformers.js flavour's embedding: standard operators, the stored values to the last bit, stored once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import write_model

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from qwen3_export.checkpoint.model import load
from qwen3_export.graph import Graph
from qwen3_export.reference.probe import Place, Site
from qwen3_export.targets.onnx import surgery
from qwen3_export.targets.onnx.export import prepare, write
from qwen3_export.targets.onnx.names import site_name
from qwen3_export.targets.onnx.read import open_onnx, read_graph
from qwen3_export.targets.onnx.recipes import find_recipe
from qwen3_export.targets.onnx.run import OnnxSession
from qwen3_export.targets.onnx.target import OnnxOptions

JS = {"flavour": "transformers.js"}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tied", "int4", {}),
    ("tied", "int4", {"asymmetric": True}),
    ("untied", "int4_int8", {}),
    ("tied", "int8", {"asymmetric": True, "group_size": 128}),
    ("moe", "int8", {}),
]


@pytest.mark.parametrize(("variant", "recipe", "options"), CASES)
def test_rows_are_the_stored_values(
    exported: Callable[..., Any], variant: str, recipe: str, options: dict[str, Any]
) -> None:
    written = exported(variant, recipe, **JS, **options)
    assert_rows(written.folder, written.model.graph)


@pytest.mark.parametrize("recipe", ["int4", "int4_fp16"])
def test_zero_points_that_end_in_half_a_byte(recipe: str, tmp_path: Path) -> None:
    """Rows of 320 have five groups of 64."""
    model = load(write_model(tmp_path / "model", "tied", hidden_size=320))
    options = OnnxOptions(flavour="transformers.js", asymmetric=True, group_size=64)
    export = prepare(model, find_recipe(recipe), out=tmp_path / "out", options=options)
    write(export)
    assert export.plan.initializers["model.embed_tokens"]["weight_zero_points"].shape[1] == 3
    assert_rows(export.out, model.graph)


def assert_rows(folder: Path, graph: Graph) -> None:
    """The values that enter the first layer are the stored rows."""
    file = open_onnx(folder)
    proto = surgery.observed(file.proto, graph)
    runtime = OnnxSession(proto.SerializeToString(), graph.config, folder=file.graph_path.parent)
    tokens = [0, 1, 77, 8191, 4096, 1]
    found = runtime.outputs(tokens)[site_name(Site(Place.INPUT, 0))][0]
    stored = read_graph(file, graph).weights["model.embed_tokens"].read()
    np.testing.assert_array_equal(found, stored[tokens].astype(found.dtype))


@pytest.mark.parametrize("recipe", ["int4", "int8", "int4_fp16"])
def test_nothing_that_browsers_lack_and_nothing_twice(exported: Callable[..., Any], recipe: str) -> None:
    written = exported("tied", recipe, **JS)
    proto = open_onnx(written.folder).proto
    assert "GatherBlockQuantized" not in {node.op_type for node in proto.graph.node}
    users = [node.op_type for node in proto.graph.node if "model.embed_tokens.weight_codes" in node.input]
    assert users == ["Gather", "MatMulNBits"]
    assert written.export.num_bytes == exported("tied", recipe).export.num_bytes


def swapped_halves(proto: Any) -> None:
    for node in proto.graph.node:
        if node.op_type == "Concat" and node.name.startswith("model.embed_tokens.codes.pairs"):
            node.input[0], node.input[1] = node.input[1], node.input[0]


def another_zero(proto: Any) -> None:
    for node in proto.graph.node:
        if node.name.startswith("model.embed_tokens.zeros"):
            node.input[0] = "byte[15]"


@pytest.mark.parametrize("edit", [swapped_halves, another_zero])
def test_a_wrong_one_is_placed(
    check_edited: Callable[..., Any], caught: Callable[..., None], edit: Callable[[Any], None]
) -> None:
    report = check_edited(edit, recipe="int4", **JS)
    caught(f"{edit.__name__.replace('_', ' ')} of the embedding", report)
    assert report.conversion.status == "fail"
    assert report.first_divergence is not None
    assert (report.first_divergence.layer, report.first_divergence.site) == (0, "input")


def with_the_other_operator(proto: Any) -> None:
    node = next(node for node in proto.graph.node if node.op_type == "Gather" and "embed" in node.input[0])
    node.op_type = "GatherBlockQuantized"


def test_lint_names_the_operator_that_browsers_lack(lint_edited: Callable[..., Any]) -> None:
    told = [finding.text for finding in lint_edited(with_the_other_operator, recipe="int4", **JS)]
    assert any("GatherBlockQuantized has no kernel" in text for text in told)
