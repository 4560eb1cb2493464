"""Formats given where they count in ONNX graphs: mixtures of formats compute what they should, and files say so."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from checks import checked
from choices import in_formats
from models import write_model

pytest.importorskip("onnx_ir")

from qwen3_export import api
from qwen3_export.calibration.provenance import allocation_or_none
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import OptionError
from qwen3_export.targets.onnx import doors
from qwen3_export.targets.onnx.export import OnnxExport, graph_bytes, write
from qwen3_export.targets.onnx.read import OnnxFile, open_onnx, read_graph
from qwen3_export.targets.onnx.versions import find_needs, oldest_runtime

JS = {"flavour": "transformers.js"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_model(tmp_path_factory.mktemp("model") / "m", "tied", num_hidden_layers=2))


@pytest.fixture(scope="module")
def chosen(model: Model, words: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], OnnxFile]:
    """An export in int4's bytes by method, once; what it has chosen lies beside it."""
    root, made = tmp_path_factory.mktemp("chosen"), dict[str, OnnxFile]()

    def make(method: str) -> OnnxFile:
        if method not in made:
            plan = api.plan(
                model,
                "onnx",
                "int4",
                out=root / method,
                method=method,
                allocate=True,
                save_allocation=root / f"{method}.json",
            )
            made[method] = open_onnx(api.export(plan, method=method, text=words))
        return made[method]

    return make


def plan_of(model: Model, recipe: str, out: Path, **options: Any) -> OnnxExport:
    plan = api.plan(model, "onnx", recipe, out=out, **options)
    assert isinstance(plan, OnnxExport)
    return plan


def mixed(plan: OnnxExport, first: int = 0) -> OnnxExport:
    """The plan with each slot in the next of all formats."""
    slots = plan.slots
    names = list(dict.fromkeys(name for slot in slots for name in slot.formats))
    turn = cycle(names[first:] + names[:first])
    return in_formats(plan, {slot.name: next(name for name in turn if name in slot.formats) for slot in slots})


def formats_in(file: OnnxFile, model: Model) -> dict[str, str]:
    return {weight.name: weight.format for weight in read_graph(file, model.graph)}


def data_bytes(file: OnnxFile) -> int:
    return sum(path.stat().st_size for path in file.data_paths)


def test_all_formats_in_one_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = load(write_model(tmp_path / "m", "untied", num_hidden_layers=4))
    plan = mixed(plan_of(model, "int4", tmp_path / "out"))
    write(plan)
    file = open_onnx(plan.out)
    assert oldest_runtime(find_needs(file.proto.graph)) == "1.24"
    found = formats_in(file, model)
    assert set(found.values()) == {"F32", *(name for slot in plan.slots for name in slot.formats)}
    report = checked("onnx", plan.out, model.graph, model.tokenizer)
    assert report.verdict == "pass", report.reasons


@pytest.mark.parametrize(
    ("variant", "recipe", "options", "first"),
    [
        ("untied", "int4", JS, 7),
        ("tied", "int4_int8", JS | {"asymmetric": True}, 13),
        ("untied", "int4_fp16", {}, 3),
        ("moe", "int4", {}, 11),
        ("moe", "int4", JS, 2),
    ],
)
def test_a_mixture_of_formats_computes_what_it_should(
    tmp_path: Path, variant: str, recipe: str, options: dict[str, Any], first: int
) -> None:
    pytest.importorskip("onnxruntime")
    model = load(write_model(tmp_path / "m", variant, num_hidden_layers=2))
    plan = mixed(plan_of(model, recipe, tmp_path / "out", **options), first)
    write(plan)
    found = formats_in(open_onnx(plan.out), model)
    assert found == {name: number_format.name for name, number_format in plan.formats.items()}
    assert len(set(found.values())) > 3
    report = checked("onnx", plan.out, model.graph, model.tokenizer)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-10
    assert not [finding.text for finding in doors.lint(plan.out, model)[1] if finding.is_error]


@pytest.mark.parametrize(("number", "options"), [(0, {}), (1, JS), (9, {}), (13, JS), (18, {}), (19, JS)])
def test_rows_of_an_embedding_in_other_formats(tmp_path: Path, number: int, options: dict[str, Any]) -> None:
    """A tied embedding is looked up and multiplied with; every format must do for both operators."""
    pytest.importorskip("onnxruntime")
    model = load(write_model(tmp_path / "m", "tied", num_hidden_layers=1))
    plan = plan_of(model, "int4", tmp_path / "out", **options)
    formats = {slot.name: slot.planned for slot in plan.slots}
    (embedding,) = (slot for slot in plan.slots if slot.name == "model.embed_tokens")
    plan = in_formats(plan, formats | {embedding.name: list(embedding.formats)[number]})
    write(plan)
    report = checked("onnx", plan.out, model.graph, model.tokenizer)
    assert report.verdict == "pass", report.reasons


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_recipe_s_bytes(chosen: Callable[[str], OnnxFile], model: Model, tmp_path: Path, method: str) -> None:
    pytest.importorskip("onnxruntime")
    file, recipe = chosen(method), plan_of(model, "int4", tmp_path / "recipe")
    assert 0.96 * recipe.num_bytes < data_bytes(file) <= recipe.num_bytes
    if method == "rtn":  # with its record, and q, k and v apart
        whole = data_bytes(file) + file.graph_path.stat().st_size
        assert whole <= recipe.num_bytes + len(graph_bytes(recipe))
    record = allocation_or_none(file.metadata)
    assert record is not None
    assert record["keeps_recipe"] is False
    assert record["measured"] < record["measured_by_recipe"]
    assert formats_in(file, model) != {name: found.name for name, found in recipe.formats.items()}
    report = checked("onnx", file.folder, model.graph, model.tokenizer)
    assert report.verdict == "pass", report.reasons
    assert report.allocation == record
    assert doors.inspect(file.folder).facts["allocation"] == file.metadata["qwen3_export.allocation"]


def test_any_size(model: Model, words: Calibration, tmp_path: Path) -> None:
    """A size between two recipes begins with the largest that fits."""
    limit = plan_of(model, "int8", tmp_path / "a").num_bytes - 20_000
    plan = plan_of(model, "int4", tmp_path / "b", size=str(limit))
    file = open_onnx(api.export(plan, text=words))
    assert 0.96 * limit < data_bytes(file) + file.graph_path.stat().st_size <= limit
    assert (allocation_or_none(file.metadata) or {})["measured_by_recipe"] > 0


def test_a_choice_is_taken_again(chosen: Callable[[str], OnnxFile], model: Model, tmp_path: Path) -> None:
    first = chosen("rtn")
    saved = first.folder.with_name("rtn.json")
    for name in ("a", "b"):
        api.export(api.plan(model, "onnx", "int4", out=tmp_path / name, allocation=saved))
    again = open_onnx(tmp_path / "a")
    assert again.data_paths[0].read_bytes() == first.data_paths[0].read_bytes()
    assert again.graph_path.read_bytes() == (tmp_path / "b" / "model.onnx").read_bytes()
    assert allocation_or_none(again.metadata) == allocation_or_none(first.metadata)
    other = load(write_model(tmp_path / "other", "tied", num_hidden_layers=1))
    with pytest.raises(OptionError, match="is another model's"):
        api.plan(other, "onnx", "int4", allocation=saved)
    with pytest.raises(OptionError, match="is for"):
        api.plan(model, "gguf", "q4_k_m", allocation=saved)
    with pytest.raises(OptionError, match="cannot have the format"):
        api.plan(model, "onnx", "int4_fp16", allocation=saved)


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("int4", {"size": "100K"}, "the smallest formats take"),
        ("int4", {"size": "1G"}, "the largest formats take"),
        ("int4", {"bits_per_weight": 2.0}, "the smallest formats take"),
        ("int4", {"size": "1M", "allocate": True}, "exclude each other"),
        ("fp16", {"allocate": True}, "no tensor is left"),
    ],
)
def test_refused_in_one_sentence(model: Model, recipe: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        api.plan(model, "onnx", recipe, **options)


def test_what_is_offered(model: Model, tmp_path: Path) -> None:
    """Two bits where they are fast: not looked up, not in browsers, not with fp32 activations or fp16 scales."""

    def bits(recipe: str, **options: Any) -> dict[str, set[int]]:
        slots = plan_of(model, recipe, tmp_path / "out", **options).slots
        return {slot.name: {found.num_bits for found in slot.formats.values()} for slot in slots}

    usual = bits("int4")
    assert usual.pop("model.embed_tokens") == {4, 8}
    assert set(map(frozenset, usual.values())) == {frozenset({2, 4, 8})}
    for found in (bits("int4", **JS), bits("int4", accuracy_level=1), bits("int4_fp16")):
        assert set(map(frozenset, found.values())) == {frozenset({4, 8})}
    (told,) = [text for text in plan_of(model, "int4", tmp_path / "out", allocate=True).remarks if "2 bits" in text]
    assert "needs onnxruntime 1.24" in told


def test_experts_of_a_layer_share_a_format(tmp_path: Path, text: Path) -> None:
    model = load(write_model(tmp_path / "moe", "moe", num_hidden_layers=1))
    words = api.calibration_text(text, model, sequence_length=64, num_samples=16)
    plan = plan_of(model, "int4", tmp_path / "out", allocate=True)
    file = open_onnx(api.export(plan, text=words))
    assert data_bytes(file) <= plan.num_bytes
    assert len({kind for name, kind in formats_in(file, model).items() if ".experts." in name}) == 1
    in_browsers = {slot.name: slot for slot in plan_of(model, "int4", tmp_path / "js", **JS).slots}
    experts = in_browsers["model.layers.0.mlp.experts"]
    assert {number_format.num_bits for number_format in experts.formats.values()} == {4}
    assert len(experts.weights) == 3 * model.graph.config.num_experts
