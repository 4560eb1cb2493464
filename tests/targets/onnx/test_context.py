"""How long a text may be: the RoPE tables, what onnxruntime-genai allocates, and what configs say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from checks import checked
from models import write_model

pytest.importorskip("onnxruntime")

from qwen3_export.checkpoint.model import load
from qwen3_export.errors import OptionError
from qwen3_export.targets.onnx import doors
from qwen3_export.targets.onnx.export import prepare, write
from qwen3_export.targets.onnx.recipes import find_recipe
from qwen3_export.targets.onnx.target import OnnxOptions


@pytest.mark.parametrize(("asked", "given"), [(None, 4096), (100, 100), (262144, 262144)])
def test_of_a_model_with_262144_positions(asked: int | None, given: int, tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "model", "tied", max_position_embeddings=262144, num_hidden_layers=1))
    options = OnnxOptions(context_length=asked)
    export = prepare(model, find_recipe("int4"), out=tmp_path / "out", options=options)
    assert export.plan.constants["cos_cache"][0].shape == (given, 32)
    if given > 4096:
        return
    write(export)
    document = json.loads((export.out / "genai_config.json").read_text())
    assert (document["model"]["context_length"], document["search"]["max_length"]) == (given, given)
    assert checked("onnx", export.out, model.graph, model.tokenizer).verdict == "pass"
    assert list(doors.lint(export.out, model)[1]) == []


def test_browsers_are_told(tmp_path: Path) -> None:
    model = load(write_model(tmp_path / "model", "tied", max_position_embeddings=40960))
    options = OnnxOptions(flavour="transformers.js", context_length=300)
    export = prepare(model, find_recipe("fp32"), out=tmp_path / "out", options=options)
    write(export)
    assert json.loads((export.out / "config.json").read_text())["max_position_embeddings"] == 300
    with doors.generate(export.out, None, threads=None) as opened:
        assert opened.runtime.context_length == 300


def test_each_graph_of_a_folder_has_its_own(tmp_path: Path) -> None:
    """config.json states one number for all: the smallest."""
    model = load(write_model(tmp_path / "model", "tied", max_position_embeddings=40960))
    out = tmp_path / "out"
    for recipe, length in (("int4", 300), ("fp32", 500)):
        options = OnnxOptions(flavour="transformers.js", context_length=length)
        write(prepare(model, find_recipe(recipe), out=out, options=options))
    config = out / "config.json"
    document = json.loads(config.read_text())
    assert document["max_position_embeddings"] == 300
    config.write_text(json.dumps(document | {"max_position_embeddings": 40960}))
    for name, length in (("model_q4.onnx", 300), ("model.onnx", 500)):
        with doors.generate(out / "onnx" / name, model, threads=None) as opened:
            assert opened.runtime.context_length == length


def test_apps_may_ask_for_less(exported: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(exported("tied", "int4").folder, folder)
    path = folder / "genai_config.json"
    document = json.loads(path.read_text())
    for stated, length in ((100, 100), (1 << 20, 2048)):
        document["model"]["context_length"] = stated
        path.write_text(json.dumps(document))
        with doors.generate(folder, None, threads=None) as opened:
            assert opened.runtime.context_length == length


def test_more_than_the_model_has_is_refused(exported: Callable[..., Any]) -> None:
    model = exported("tied", "int4").model
    with pytest.raises(OptionError, match=r"`context_length` 2049: the model's context ends at 2,048 tokens"):
        prepare(model, find_recipe("int4"), options=OnnxOptions(context_length=2049))
    with pytest.raises(OptionError, match="`context_length` 0: must be at least 1"):
        OnnxOptions(context_length=0)
