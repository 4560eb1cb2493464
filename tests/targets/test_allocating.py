"""Formats given where they count: the sizes that are kept, what is recorded, and when the recipe stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import write_model

from qwen3_export import api
from qwen3_export.calibration.provenance import allocation_or_none
from qwen3_export.calibration.sensitivity import run as sensitivity_run
from qwen3_export.calibration.solving import Solution
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CalibrationError, ExportError, OptionError, OutputError
from qwen3_export.graph import Kind
from qwen3_export.targets import allocating, exporting
from qwen3_export.targets.gguf.read import GgufFile, open_gguf

pytestmark = pytest.mark.gguf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_model(tmp_path_factory.mktemp("model") / "m", "tied", num_hidden_layers=2))


@pytest.fixture(scope="module")
def written(model: Model, words: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., GgufFile]:
    """An export with these options, once."""
    root, made = tmp_path_factory.mktemp("files"), dict[str, GgufFile]()

    def make(recipe: str, method: str = "rtn", **options: Any) -> GgufFile:
        key = f"{recipe} {method} {options}"
        if key not in made:
            plan = api.plan(model, "gguf", recipe, out=root / f"{len(made)}.gguf", method=method, **options)
            wants_text = method != "rtn" or plan.options.needs_text
            path = api.export(plan, method=method, text=words if wants_text else None)
            made[key] = open_gguf(path)
        return made[key]

    return make


def size(file: GgufFile) -> int:
    return sum(path.stat().st_size for path in {tensor.path for tensor in file.tensors.values()})


def formats(file: GgufFile) -> dict[str, str]:
    return {name: tensor.format for name, tensor in file.tensors.items()}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_recipe_s_bytes(written: Callable[..., GgufFile], method: str) -> None:
    found, recipe = written("q3_k_m", method, allocate=True), written("q3_k_m", method)
    assert size(found) <= size(recipe)
    assert size(found) > 0.97 * size(recipe)
    record = allocation_or_none(found.metadata)
    assert record is not None
    assert record["keeps_recipe"] is False
    assert record["measured"] < record["measured_by_recipe"]
    assert record["expected"] < record["expected_by_recipe"]
    assert formats(found) != formats(recipe)
    assert {name for name, kind in formats(found).items() if kind == "F32"} == {
        name for name, kind in formats(recipe).items() if kind == "F32"
    }


def test_what_is_recorded_was_measured(written: Callable[..., GgufFile], model: Model, words: Calibration) -> None:
    """The numbers in the file are those of the files' own values on the text that was held back."""
    _, held_back = allocating._parts(words.windows)
    record = allocation_or_none(written("q3_k_m", allocate=True).metadata)
    assert record is not None
    for key, file in (
        ("measured", written("q3_k_m", allocate=True)),
        ("measured_by_recipe", written("q3_k_m")),
    ):
        stored = api.read(next(iter(file.tensors.values())).path, model)
        assert allocating.mean_kld(model.graph, stored, held_back) == pytest.approx(record[key], rel=1e-4)


def test_any_size(written: Callable[..., GgufFile], model: Model) -> None:
    recipe = size(written("q4_k_m"))
    found = written("q4_k_m", size=str(recipe - 40_000))
    assert recipe - 60_000 < size(found) <= recipe - 40_000
    # What a solver records counts too.
    assert recipe - 62_000 < size(written("q4_k_m", "gptq", size=str(recipe - 40_000))) <= recipe - 40_000
    bits = written("q4_k_m", bits_per_weight=4.0)
    stored = sum(tensor.num_bytes for tensor in bits.tensors.values())
    assert 3.9 * model.graph.num_parameters / 8 < stored <= 4.0 * model.graph.num_parameters / 8


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": "100K"}, "the smallest formats take"),
        ({"size": "1G"}, "the largest formats take"),
        ({"bits_per_weight": 1.5}, "the smallest formats take"),
        ({"bits_per_weight": 12.0}, "the largest formats take"),
        ({"bits_per_weight": -1.0}, "must be positive"),
        ({"size": "much"}, "not a size"),
        ({"size": "1M", "allocate": True}, "exclude each other"),
        ({"save_allocation": Path("a.json")}, "saves what is chosen"),
    ],
)
def test_sizes_that_nothing_has(model: Model, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        api.plan(model, "gguf", "q4_k_m", **options)


def test_a_text_that_cannot_be_divided(model: Model, text: Path, tmp_path: Path) -> None:
    for count, length in ((1, 256), (1, 64)):
        words = api.calibration_text(text, model, sequence_length=length, num_samples=count)
        plan = api.plan(model, "gguf", "q4_k_m", out=tmp_path / "m.gguf", allocate=True)
        with pytest.raises(CalibrationError, match="too few to choose formats and to verify"):
            api.export(plan, text=words)
        assert not list(tmp_path.iterdir())
    words = api.calibration_text(text, model, sequence_length=300, num_samples=1)
    seen, held = allocating._parts(words.windows)
    assert [len(piece) for piece in (*seen, *held)] == [256, 44]


def test_floats_have_no_formats_to_choose(model: Model) -> None:
    with pytest.raises(OptionError, match="no tensor is left whose format could be chosen"):
        api.plan(model, "gguf", "bf16", allocate=True)


def test_what_the_user_asked_for_stays(written: Callable[..., GgufFile]) -> None:
    found = formats(written("q3_k_m", allocate=True, tensor_type=("attn_v=q8_0",), output_type="q6_k"))
    assert {kind for name, kind in found.items() if "attn_v" in name} == {"Q8_0"}
    assert found["token_embd.weight"] == "Q6_K"


def test_a_choice_is_saved_and_taken_again(
    written: Callable[..., GgufFile], model: Model, words: Calibration, tmp_path: Path
) -> None:
    saved = tmp_path / "choice.json"
    first = written("q3_k_m", allocate=True, save_allocation=saved)
    again = open_gguf(api.export(api.plan(model, "gguf", "q3_k_m", out=tmp_path / "again.gguf", allocation=saved)))
    assert formats(again) == formats(first)
    sibling = load(write_model(tmp_path / "sibling", "tied", num_hidden_layers=2, rope_theta=5e5))
    plan = api.plan(sibling, "gguf", "q3_k_m", out=tmp_path / "sibling.gguf", allocation=saved)
    assert formats(open_gguf(api.export(plan))) == formats(first)
    other = load(write_model(tmp_path / "other", "tied", num_hidden_layers=1))
    with pytest.raises(OptionError, match="is another model's"):
        api.plan(other, "gguf", "q3_k_m", allocation=saved)
    own = tmp_path / "mine.json"
    own.write_text("{}")
    plan = api.plan(model, "gguf", "q3_k_m", out=tmp_path / "x.gguf", allocate=True, save_allocation=own)
    with pytest.raises(OutputError):
        api.export(plan, text=words)
    assert own.read_text() == "{}"
    assert not (tmp_path / "x.gguf").exists()


def test_a_solver_counts_errors_of_outputs_together_where_formats_are_given(
    model: Model, words: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice that is taken again gives the same file as the export that made it, and a recipe has nothing of it."""
    tied, solve = [], exporting.solve

    def seen(*arguments: Any, **settings: Any) -> Solution:
        tied.append(settings["ties_outputs"])
        return solve(*arguments, **settings)

    monkeypatch.setattr(exporting, "solve", seen)
    saved, files = tmp_path / "choice.json", []
    for options in ({"allocate": True, "save_allocation": saved}, {"allocation": saved}, {}):
        plan = api.plan(model, "gguf", "q3_k_m", out=tmp_path / f"{len(files)}.gguf", method="gptq", **options)
        files.append(api.export(plan, method="gptq", text=words).read_bytes())
    assert tied == [True, True, False]
    assert files[0] == files[1] != files[2]


def test_a_dry_run_counts_what_is_measured(model: Model, words: Calibration) -> None:
    plain, allocating_too = (
        api.plan(model, "gguf", "q3_k_m", method="gptq", allocate=allocate) for allocate in (False, True)
    )
    solving, all_of_it = (exporting.forecast(plan, "gptq", words) for plan in (plain, allocating_too))
    rounding = exporting.forecast(allocating_too, "rtn", words)
    assert all_of_it.seconds > solving.seconds > 0
    assert all_of_it.disk_bytes > solving.disk_bytes
    assert all_of_it.seconds > rounding.seconds > 0
    assert exporting.forecast(plain, "rtn", words).seconds == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found["formats"].update({"token_embd.weight": "Q9_K"}), 'cannot have the format "Q9_K"'),
        (lambda found: found["formats"].update({"token_embd.weight": 7}), "cannot have the format 7"),
        (lambda found: found["formats"].pop("token_embd.weight"), "another model's"),
        (lambda found: found["shapes"].update({"token_embd.weight": [1, 2]}), "another model's"),
        (lambda found: found.update(target="onnx"), "is for"),
        (lambda found: found.update(kind="notes"), "not a saved choice"),
        (lambda found: found.update(formats=[]), "where an object belongs"),
    ],
)
def test_damaged_choices(
    written: Callable[..., GgufFile],
    model: Model,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    change: Callable[[dict[str, Any]], object],
    told: str,
) -> None:
    saved = tmp_path_factory.getbasetemp() / "shared choice.json"
    if not saved.exists():
        written("q3_k_m", allocate=True, save_allocation=saved)
    document = json.loads(saved.read_text())
    change(document)
    (tmp_path / "damaged.json").write_text(json.dumps(document))
    with pytest.raises(ExportError, match=told):
        api.plan(model, "gguf", "q3_k_m", allocation=tmp_path / "damaged.json")


def test_a_recipe_that_is_better_is_kept(
    model: Model, words: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A measurement that says the contrary of the truth makes a choice that loses more."""

    def upside_down(*arguments: Any, **settings: Any) -> sensitivity_run.Sensitivity:
        found = sensitivity_run.measure_sensitivity(*arguments, **settings)
        losses = {name: {kind: 1 / loss for kind, loss in of.items()} for name, of in found.losses.items()}
        return sensitivity_run.Sensitivity(losses=losses, left=found.left, num_tokens=found.num_tokens)

    monkeypatch.setattr(allocating, "measure_sensitivity", upside_down)
    plan = api.plan(model, "gguf", "q4_k_m", out=tmp_path / "m.gguf", allocate=True)
    found = open_gguf(api.export(plan, text=words))
    plain = open_gguf(api.export(api.plan(model, "gguf", "q4_k_m", out=tmp_path / "plain.gguf")))
    assert formats(found) == formats(plain)
    record = allocation_or_none(found.metadata)
    assert record is not None
    assert record["keeps_recipe"] is True
    assert record["measured"] >= record["measured_by_recipe"]


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_what_a_solver_leaves_counts_in_the_comparison(
    model: Model, words: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    """A choice that loses more, rounded to nearest, is good for a solver that leaves less of it."""
    measured = iter([1.2, 1.0])
    monkeypatch.setattr(allocating, "mean_kld", lambda *_: next(measured))
    shares = iter([0.5, 0.9])
    monkeypatch.setattr(allocating, "_left", lambda *_: next(shares))
    plan = api.plan(model, "gguf", "q4_k_m", out=tmp_path / "m.gguf", method=method, allocate=True)
    record = allocation_or_none(open_gguf(api.export(plan, method=method, text=words)).metadata)
    assert record is not None
    assert (record["measured"], record["measured_by_recipe"]) == (1.2, 1.0)
    assert record["keeps_recipe"] == (method == "rtn")
    assert (record["left"], record["left_by_recipe"]) == ((1.0, 1.0) if method == "rtn" else (0.5, 0.9))


def test_an_interrupted_measurement_goes_on(
    written: Callable[..., GgufFile], model: Model, words: Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is measured is kept, and the file is the same as without the interruption."""
    calls: list[Kind] = []
    measure = sensitivity_run.weight_losses

    def interrupted(weight: Any, *arguments: Any, **settings: Any) -> dict[str, float]:
        calls.append(weight.role.kind)
        if weight.role.layer == 0 and weight.role.kind is Kind.O_PROJ and calls.count(Kind.O_PROJ) == 2:
            raise KeyboardInterrupt
        return measure(weight, *arguments, **settings)

    monkeypatch.setattr(sensitivity_run, "weight_losses", interrupted)
    plan = api.plan(model, "gguf", "q3_k_m", out=tmp_path / "m.gguf", allocate=True)
    with pytest.raises(KeyboardInterrupt):
        api.export(plan, text=words)
    before = len(calls)
    found = open_gguf(api.export(plan, text=words))
    assert len(calls) - before == 7  # layer 0's; layer 1 was done
    assert formats(found) == formats(written("q3_k_m", allocate=True))
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


def test_experts_share_a_format(tmp_path: Path, text: Path) -> None:
    model = load(write_model(tmp_path / "moe", "moe", num_hidden_layers=1))
    words = api.calibration_text(text, model, sequence_length=64, num_samples=16)
    plan = api.plan(model, "gguf", "q4_k_m", out=tmp_path / "m.gguf", allocate=True)
    plain = api.plan(model, "gguf", "q4_k_m", out=tmp_path / "m.gguf")
    found = open_gguf(api.export(plan, text=words))
    assert size(found) <= plain.num_bytes
    assert found.tensors["blk.0.ffn_gate_exps.weight"].format not in ("F32", "F16")
