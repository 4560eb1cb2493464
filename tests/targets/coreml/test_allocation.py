"""Formats given where they count, in Core ML: every format that is offered, the bytes, and what is recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from choices import in_formats
from models import TINY, write_model

from qwen3_export import api
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import OptionError
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.targets.coreml import doors
from qwen3_export.targets.coreml.export import prepare
from qwen3_export.targets.coreml.layout import matrix_bytes
from qwen3_export.targets.coreml.names import PACKAGE, WEIGHT_FILE, mil_name
from qwen3_export.targets.coreml.read import open_coreml, read_package
from qwen3_export.targets.coreml.recipes import RECIPES
from qwen3_export.targets.coreml.target import CoremlOptions


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Rows that all blocks divide."""
    return load(write_model(tmp_path_factory.mktemp("wide") / "m", "tied", num_hidden_layers=2))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_model(tmp_path_factory.mktemp("model") / "m", "tied", **{**TINY, "hidden_size": 128}))


@pytest.fixture(scope="module")
def chosen(
    model: Model, words: Calibration, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Path, Path]]:
    """A folder with chosen formats, and the file of the choice; written once for each recipe and method."""
    root, made = tmp_path_factory.mktemp("chosen"), dict[str, tuple[Path, Path]]()

    def make(recipe: str, method: str = "rtn", **options: Any) -> tuple[Path, Path]:
        key = "-".join([recipe, method, *(f"{name}-{value}" for name, value in options.items())])
        if key not in made:
            saved = root / f"{key}.json"
            plan = api.plan(model, "coreml", recipe, out=root / key, method=method, save_allocation=saved, **options)
            made[key] = api.export(plan, method=method, text=words), saved
        return made[key]

    return make


def formats(folder: Path, model: Model) -> dict[str, str]:
    """Of all quantized weights."""
    stored, _ = read_package(folder, model.graph)
    return {weight.name: weight.format for weight in stored if weight.format not in ("F16", "F32")}


def weight_bytes(folder: Path) -> int:
    return (folder / PACKAGE / WEIGHT_FILE).stat().st_size


def package_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / PACKAGE).rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("recipe", "options", "count"),
    [("int4", {"group_size": 16}, 8), ("palette4", {}, 15), ("int4", {"channelwise": True, "split_lm_head": 4096}, 15)],
)
def test_every_format_in_one_package(
    wide: Model, tmp_path: Path, recipe: str, options: dict[str, Any], count: int
) -> None:
    """Written, decoded by coremltools' own loader, and checked through the executor."""
    from coremltools.converters.mil.frontend.milproto.load import load as load_program
    from coremltools.models import MLModel

    plan = prepare(wide, RECIPES[recipe], out=tmp_path / "out", options=CoremlOptions(**options))
    turn = cycle(range(count))
    names = {slot.name: list(slot.formats)[next(turn)] for slot in plan.slots}
    assert len(set(names.values())) >= count
    mixed = in_formats(plan, names)
    doors.write(mixed, overwrite=False, threads=2, progress=api.SILENT)
    assert formats(mixed.out, wide) == names
    assert weight_bytes(mixed.out) == mixed.plan.num_bytes
    package = MLModel(str(mixed.package), skip_model_load=True)
    program = load_program(package.get_spec(), 9, package.weights_dir)
    decoded = {operation.outputs[0].name: operation for operation in program.functions["main"].operations}
    for slot in plan.slots:
        found = decoded[mil_name(slot.name)].materialized_val_inference()
        np.testing.assert_array_equal(found, mixed.graph.weights[slot.name].read().astype(np.float16), slot.name)
    report = api.check(mixed.out, wide)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-9


def test_a_damaged_weight_of_a_mixed_package_is_found(model: Model, tmp_path: Path) -> None:
    """Integers have their own limits beside palettes, and tables of few values limits below 1."""
    plan = prepare(model, RECIPES["palette4"], out=tmp_path / "out")
    names = {slot.name: "int8_channel_f16" for slot in plan.slots} | {"model.layers.1.mlp.up_proj": "palette2_rows4"}
    mixed = in_formats(plan, names)
    doors.write(mixed, overwrite=False, threads=2, progress=api.SILENT)
    assert api.check(mixed.out, model).verdict == "pass"
    file, path = open_coreml(mixed.out), mixed.package / WEIGHT_FILE
    data = bytearray(path.read_bytes())
    for name, part in (("model.layers.0.self_attn.q_proj", "data"), ("model.layers.1.mlp.up_proj", "lut")):
        blob = file.constants[mil_name(name)][part]
        data[blob.data_offset : blob.end] = bytes(blob.num_bytes)
    path.write_bytes(bytes(data))
    told = "\n".join(api.check(mixed.out, model).values)
    assert "model.layers.0.self_attn.q_proj" in told
    assert "model.layers.1.mlp.up_proj" in told


def test_formats_for_each_processor(model_folder: Callable[[str], Path]) -> None:
    """Blocks for GPUs; tables and whole rows for the Neural Engine. Each fits rows, columns and parts of a head."""
    for variant, recipe, options in [
        ("tied", "int4", {}),
        ("rows_of_320", "int4", {"split_lm_head": 4096}),
        ("rows_of_72", "int4", {"channelwise": True}),
        ("added_tokens", "palette6", {}),
        ("untied", "int8", {"split_lm_head": 3208}),
    ]:
        plan = prepare(load(model_folder(variant)), RECIPES[recipe], options=CoremlOptions(**options))
        assert len(plan.slots) == sum(len(weight.shape) == 2 for weight in plan.graph)
        for slot in plan.slots:
            assert slot.planned in slot.formats
            for number_format in slot.formats.values():
                number_format.check(slot.shape)
                is_block = isinstance(number_format, AffineFormat) and number_format.group_size is not None
                assert plan.has_blocks or not is_block
                assert not (plan.has_blocks and isinstance(number_format, PaletteFormat))
    head = next(slot for slot in plan.slots if slot.name == "lm_head")
    assert head.num_bytes["palette4_rows8"] == sum(
        matrix_bytes((rows, 256), head.formats["palette4_rows8"]) for rows in (3208, 3208, 8192 - 2 * 3208)
    )
    assert "palette4_rows16" not in head.formats  # 3208 rows end in the middle of a table


def test_bytes_of_slots_are_those_of_the_file(model: Model, tmp_path: Path) -> None:
    for options in ({}, {"split_lm_head": 4096}):
        plan = prepare(model, RECIPES["palette4"], out=tmp_path / "out", options=CoremlOptions(**options))
        fixed = plan.plan.num_bytes - sum(slot.num_bytes[slot.planned] for slot in plan.slots)
        for pick in (min, max):
            names = {slot.name: pick(slot.formats, key=slot.num_bytes.__getitem__) for slot in plan.slots}
            taken = sum(slot.num_bytes[names[slot.name]] for slot in plan.slots)
            assert in_formats(plan, names).plan.num_bytes == fixed + taken


@pytest.mark.parametrize(("recipe", "method"), [("int4", "gptq"), ("palette6", "rtn")])
def test_a_recipe_s_bytes(
    chosen: Callable[..., tuple[Path, Path]],
    model: Model,
    words: Calibration,
    recipe: str,
    method: str,
    tmp_path: Path,
) -> None:
    """No package is larger than the recipe's, the program and its record of the choice included."""
    folder, saved = chosen(recipe, method, allocate=True)
    plain = api.export(
        api.plan(model, "coreml", recipe, out=tmp_path / "plain", method=method),
        method=method,
        text=None if method == "rtn" else words,
    )
    assert package_bytes(folder) <= package_bytes(plain)
    assert weight_bytes(folder) > 0.95 * weight_bytes(plain)
    document = json.loads(saved.read_text())
    assert formats(folder, model) == document["formats"]
    assert len(set(document["formats"].values())) > 1
    assert document["measured"] < document["measured_by_recipe"]
    report = api.check(folder, model)
    assert (report.verdict, report.method) == ("pass", method), report.reasons
    assert report.allocation is not None
    assert report.allocation["measured"] == document["measured"]
    assert json.loads(str(doors.inspect(folder).facts["allocation"]))["sha256"] == document["sha256"]
    assert not list(doors.lint(folder, model)[1])


def test_a_choice_is_taken_again(chosen: Callable[..., tuple[Path, Path]], model: Model, tmp_path: Path) -> None:
    """The same bytes of weights for the same model, and the same formats with a split head."""
    folder, saved = chosen("palette4", allocate=True)
    again = api.export(api.plan(model, "coreml", "palette4", out=tmp_path / "again", allocation=saved))
    for file in (WEIGHT_FILE, "Data/com.apple.CoreML/model.mlmodel"):
        assert (again / PACKAGE / file).read_bytes() == (folder / PACKAGE / file).read_bytes()
    split = api.plan(model, "coreml", "palette4", out=tmp_path / "split", allocation=saved, split_lm_head=4096)
    assert formats(api.export(split), model) == formats(folder, model)
    with pytest.raises(OptionError, match="cannot have the format"):
        api.plan(model, "coreml", "int4", allocation=saved)
    document = json.loads(saved.read_text()) | {"target": "gguf"}
    (tmp_path / "other.json").write_text(json.dumps(document))
    with pytest.raises(OptionError, match='is for "gguf", not for coreml'):
        api.plan(model, "coreml", "palette4", allocation=tmp_path / "other.json")


def test_any_size(chosen: Callable[..., tuple[Path, Path]], model: Model) -> None:
    """Below the recipe's own bytes, a recipe for the same processor is what the choice is compared with."""
    folder, saved = chosen("palette6", bits_per_weight=4.6)
    stored, parameters = read_package(folder, model.graph)[0], model.graph.num_parameters
    assert 8 * weight_bytes(folder) / parameters > 4.5
    assert len({weight.format for weight in stored}) > 2
    assert json.loads(saved.read_text())["recipe"] == "palette4"
    plan = prepare(model, RECIPES["int4"])
    smaller = doors.fitting(plan, plan.num_bytes - 1)
    assert smaller is not None
    assert (smaller.recipe.name, smaller.options.group_size) == ("int4", 64)
    assert doors.fitting(plan, 1000) is None


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("int4", {"size": "100K"}, "the smallest formats take"),
        ("int4", {"size": "1G"}, "the largest formats take"),
        ("palette4", {"bits_per_weight": 1.5}, "the smallest formats take"),
        ("palette4", {"bits_per_weight": 12.0}, "the largest formats take"),
        ("fp16", {"allocate": True}, "no tensor is left whose format could be chosen"),
        ("int4", {"size": "1M", "allocate": True}, "exclude each other"),
        ("int4", {"group_size": 48}, "`group_size` 48"),
    ],
)
def test_sizes_that_nothing_has(model: Model, recipe: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told) as refused:
        api.plan(model, "coreml", recipe, **options)
    assert "\n" not in str(refused.value)
