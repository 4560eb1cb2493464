"""Formats given where they count in ExecuTorch programs. Lowering takes seconds a layer, so few are made."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from checks import checked
from choices import in_formats
from models import write_model

pytest.importorskip("executorch")

from qwen3_export import api
from qwen3_export.calibration.provenance import allocation_or_none
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import OptionError
from qwen3_export.targets.executorch import doors
from qwen3_export.targets.executorch.export import ExecutorchExport, write
from qwen3_export.targets.executorch.stored import read_index

MAX_SEQ_LEN = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_model(tmp_path_factory.mktemp("model") / "m", "tied", num_hidden_layers=1))


@pytest.fixture(scope="module")
def chosen(model: Model, words: Calibration, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export in 8da4w's bytes by GPTQ; what it has chosen lies beside it."""
    root = tmp_path_factory.mktemp("chosen")
    options = {"allocate": True, "save_allocation": root / "choice.json", "max_seq_len": MAX_SEQ_LEN}
    plan = api.plan(model, "executorch", "8da4w", out=root / "out", method="gptq", **options)
    return api.export(plan, method="gptq", text=words)


def plan_of(model: Model, recipe: str, out: Path, **options: Any) -> ExecutorchExport:
    plan = api.plan(model, "executorch", recipe, out=out, max_seq_len=MAX_SEQ_LEN, **options)
    assert isinstance(plan, ExecutorchExport)
    return plan


def mixed(plan: ExecutorchExport) -> ExecutorchExport:
    """The plan with each slot in the next of its formats."""
    slots = plan.slots
    turn = cycle(dict.fromkeys(name for slot in reversed(slots) for name in slot.formats))
    return in_formats(plan, {slot.name: next(name for name in turn if name in slot.formats) for slot in slots})


def formats_in(folder: Path, model: Model) -> dict[str, str]:
    return {weight.name: weight.format for weight in doors.read(folder, model.graph)}


def program_bytes(folder: Path) -> int:
    return (folder / "model.pte").stat().st_size


@pytest.mark.parametrize(("variant", "full"), [("untied", True), ("moe", False)])
def test_a_mixture_of_formats_computes_what_it_should(tmp_path: Path, variant: str, full: bool) -> None:
    """Groups of every size, bytes a channel and nibbles in one program; a full check has an exact twin."""
    model = load(write_model(tmp_path / "m", variant, num_hidden_layers=1))
    plan = mixed(plan_of(model, "8da4w", tmp_path / "out"))
    write(plan)
    found = formats_in(plan.out, model)
    # What is read back does not know that bytes a channel leave out one code.
    assert found == {name: kind.name.removesuffix("_narrow") for name, kind in plan.formats.items()}
    if variant != "moe":
        offered = {name for slot in plan.slots[1:] for name in slot.formats}
        assert {kind.name for kind in plan.formats.values()} >= offered
    report = checked("executorch", plan.out, model.graph, model.tokenizer, full=full)
    assert report.verdict == "pass", report.reasons
    assert plan.num_bytes < program_bytes(plan.out) <= plan.num_bytes + plan.beside_bytes
    assert report.conversion.mean_kld is not None
    if full:
        assert report.conversion.mean_kld < 1e-10


def test_a_recipe_s_bytes(chosen: Path, model: Model, tmp_path: Path) -> None:
    recipe = plan_of(model, "8da4w", tmp_path / "recipe")
    write(recipe)
    assert 0.97 * program_bytes(recipe.out) < program_bytes(chosen) <= program_bytes(recipe.out)
    record = allocation_or_none(read_index(chosen))
    assert record is not None
    assert record["keeps_recipe"] is False
    assert record["measured"] < record["measured_by_recipe"]
    assert formats_in(chosen, model) != formats_in(recipe.out, model)
    report = checked("executorch", chosen, model.graph, model.tokenizer)
    assert (report.verdict, report.method) == ("pass", "gptq"), report.reasons
    assert report.allocation == record
    assert "measured_by_recipe" in str(doors.inspect(chosen).facts["allocation"])


def test_a_choice_is_taken_again(chosen: Path, model: Model, tmp_path: Path) -> None:
    saved = chosen.with_name("choice.json")
    api.export(plan_of(model, "8da4w", tmp_path / "a", allocation=saved))
    assert formats_in(tmp_path / "a", model) == formats_in(chosen, model)
    other = load(write_model(tmp_path / "other", "tied", num_hidden_layers=2))
    with pytest.raises(OptionError, match="is another model's"):
        plan_of(other, "8da4w", tmp_path / "c", allocation=saved)
    with pytest.raises(OptionError, match="is for"):
        api.plan(model, "gguf", "q4_k_m", allocation=saved)


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        ("8da4w", {"size": "100K"}, "the smallest formats take"),
        ("8da4w", {"size": "1G"}, "the largest formats take"),
        ("8da4w", {"bits_per_weight": 2.0}, "the smallest formats take"),
        ("8da4w", {"size": "1M", "allocate": True}, "exclude each other"),
        ("fp32", {"allocate": True}, "no tensor is left"),
    ],
)
def test_refused_in_one_sentence(model: Model, recipe: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        api.plan(model, "executorch", recipe, **({"embedding": 32} if recipe == "fp32" else {}), **options)


def test_what_the_user_asked_for_stays(model: Model, tmp_path: Path) -> None:
    names = {slot.name for slot in plan_of(model, "8da4w", tmp_path / "a").slots}
    assert {"model.embed_tokens", "lm_head"} <= names
    for options in ({"embedding": 8}, {"portable": True}):
        fixed = {slot.name for slot in plan_of(model, "8da4w", tmp_path / "a", **options).slots}
        assert fixed == names - {"model.embed_tokens"}


def test_sizes_begin_with_the_largest_recipe_that_fits(model: Model, tmp_path: Path) -> None:
    large, small = (plan_of(model, recipe, tmp_path / "a") for recipe in ("8da8w", "8da4w"))
    found = doors.fitting(small, large.num_bytes - 1)
    assert found is not None
    assert found.recipe.name == "8da4w"
    assert doors.fitting(small, small.num_bytes - 1) is None


def test_a_plan_in_other_formats_counts_the_checkpoint_s_parameters(model: Model, tmp_path: Path) -> None:
    """The head that a tied model is stored with twice is not one of them, and is told as before."""
    plan = plan_of(model, "8da4w", tmp_path / "a")
    for again in (in_formats(plan, {slot.name: slot.planned for slot in plan.slots}), plan.with_recipe(plan.recipe)):
        assert again.num_parameters == plan.num_parameters == model.graph.num_parameters
        assert again.remarks == plan.remarks


def test_experts_of_a_layer_share_a_format(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    model = load(model_folder("moe"))
    slots = {slot.name: slot for slot in plan_of(model, "8da4w", tmp_path / "a").slots}
    experts = slots["model.layers.0.mlp.experts"]
    assert len(experts.weights) == 3 * model.graph.config.num_experts
    assert not any(".experts." in name for name in slots)
