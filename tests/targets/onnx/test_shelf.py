"""Folders for transformers.js that hold several number types, and data in several files."""

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

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import OutputError
from qwen3_export.progress import SILENT
from qwen3_export.targets.onnx import doors, export
from qwen3_export.targets.onnx.export import OnnxExport, prepare, write
from qwen3_export.targets.onnx.recipes import find_recipe
from qwen3_export.targets.onnx.target import OnnxOptions


def planned(model: Model, recipe: str, out: Path, **options: Any) -> OnnxExport:
    return prepare(model, find_recipe(recipe), out=out, options=OnnxOptions(flavour="transformers.js", **options))


def put(plan: OnnxExport, *, overwrite: bool = False) -> Path:
    doors.check_place(plan, overwrite=overwrite)
    return doors.write(plan, overwrite=overwrite, threads=None, progress=SILENT)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def tied(model_folder: Callable[[str], Path]) -> Model:
    return load(model_folder("tied"))


def test_a_second_number_type_is_added(tied: Model, tmp_path: Path) -> None:
    out = tmp_path / "web" / "tied"
    assert put(planned(tied, "int4", out)) == out
    (out / "report_q4.json").write_text("{}")
    first = {path: path.read_bytes() for path in out.rglob("*q4*") if path.is_file()}
    plan = planned(tied, "int4_fp16", out)
    assert f"{out} keeps onnx/model_q4.onnx; onnx/model_q4f16.onnx is added" in plan.remarks
    graph = put(plan)
    assert graph == out / "onnx" / "model_q4f16.onnx"
    assert {path: path.read_bytes() for path in first} == first
    own = json.loads((out / "config.json").read_text())["transformers.js_config"]
    assert own == {
        "use_external_data_format": {"model_q4.onnx": 1, "model_q4f16.onnx": 1},
        "kv_cache_dtype": {"q4f16": "float16"},
    }
    for path in (graph, out / "onnx" / "model_q4.onnx"):
        report = checked("onnx", path, tied.graph, tied.tokenizer)
        assert report.verdict == "pass", report.reasons
        assert list(doors.lint(path, tied)[1]) == []


def test_the_same_number_type_is_replaced_when_asked(tied: Model, tmp_path: Path) -> None:
    out = tmp_path / "out"
    put(planned(tied, "int4", out))
    put(planned(tied, "fp16", out))
    kept = (out / "onnx" / "model_fp16.onnx_data").read_bytes()
    again = planned(tied, "int4", out, asymmetric=True)
    with pytest.raises(OutputError, match=r"holds onnx/model_q4\.onnx already.*`overwrite=True`"):
        put(again)
    put(again, overwrite=True)
    assert (out / "onnx" / "model_fp16.onnx_data").read_bytes() == kept
    assert (out / "onnx" / "model_q4.onnx_data").stat().st_size == again.num_bytes
    lone = planned(tied, "int4", tmp_path / "lone")
    put(lone)
    with pytest.raises(OutputError, match="exists already and is not empty"):
        put(lone)


def test_another_model_s_folder_is_not_added_to(
    tied: Model, model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    put(planned(tied, "int4", out))
    other = planned(load(model_folder("untied")), "fp16", out)
    assert other.remarks == ()
    with pytest.raises(OutputError, match="exists already and is not empty"):
        put(other)
    put(other, overwrite=True)
    assert names(out / "onnx") == ["model_fp16.onnx", "model_fp16.onnx_data"]
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"thesis\.txt"):
        put(planned(load(model_folder("untied")), "int4", out))
    assert (out / "thesis.txt").read_text() == "mine"


def test_data_is_split_as_browsers_fetch_it(tied: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = planned(tied, "int4", tmp_path / "whole")
    write(whole)
    monkeypatch.setattr(export, "BROWSER_FILE_BYTES", 1_200_000)
    plan = planned(tied, "int4", tmp_path / "split")
    put(plan)
    sizes = [
        path.stat().st_size for path in sorted((plan.out / "onnx").glob("*_data*"), key=lambda path: len(path.name))
    ]
    assert len(sizes) > 1
    assert max(sizes) <= 1_200_000
    assert tuple(sizes) == plan.plan.file_bytes
    assert plan.remarks == (
        f"the weights are in {len(sizes)} files, because a browser fetches 2 GB in one piece at most",
    )
    assert names(plan.out / "onnx")[:3] == ["model_q4.onnx", "model_q4.onnx_data", "model_q4.onnx_data_1"]
    own = json.loads((plan.out / "config.json").read_text())["transformers.js_config"]
    assert own["use_external_data_format"] == {"model_q4.onnx": len(sizes)}
    report = checked("onnx", plan.out, tied.graph, tied.tokenizer)
    assert report.verdict == "pass", report.reasons
    assert report.bits_per_weight == pytest.approx(
        checked("onnx", whole.out, tied.graph, tied.tokenizer).bits_per_weight
    )
    assert list(doors.lint(plan.out, tied)[1]) == []
    document = json.loads((plan.out / "config.json").read_text())
    document["transformers.js_config"]["use_external_data_format"]["model_q4.onnx"] = 1
    (plan.out / "config.json").write_text(json.dumps(document))
    assert any("data files are fetched" in finding.text for finding in doors.lint(plan.out, tied)[1])


def test_what_no_browser_takes_is_said(tied: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "BROWSER_FILE_BYTES", 500_000)
    (remark,) = planned(tied, "fp32", tmp_path / "out").remarks
    assert "larger than the 2 GB that a browser fetches in one piece" in remark
    monkeypatch.setattr(export, "BROWSER_BYTES", 1_000_000)
    (remark,) = planned(tied, "fp32", tmp_path / "out").remarks
    assert "4 GiB that WebAssembly has" in remark


def test_folders_above_are_created_and_removed_again(
    tied: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen3_export.targets.onnx import emit

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(emit, "write_data", fail)
    with pytest.raises(KeyboardInterrupt):
        put(planned(tied, "int4", tmp_path / "a" / "b" / "c"))
    assert names(tmp_path) == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file, where a folder must be"):
        put(planned(tied, "int4", tmp_path / "file" / "c"))
    shutil.rmtree(tmp_path / "file", ignore_errors=True)
