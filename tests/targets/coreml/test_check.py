"""The check of Core ML folders: sound ones pass, broken ones are caught, and told where they part."""

from __future__ import annotations

import runpy
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("coremltools")

from qwen3_export import api
from qwen3_export.errors import CheckpointError, MissingExtraError
from qwen3_export.parity.report import Report
from qwen3_export.targets.coreml import run
from qwen3_export.targets.coreml.names import MODEL_FILE, PACKAGE, WEIGHT_FILE
from qwen3_export.targets.coreml.read import open_coreml
from qwen3_export.targets.coreml.run import CoremlSession
from qwen3_export.targets.coreml.transcript import write_transcript

Operations = dict[str, Any]


@dataclass(frozen=True)
class Mutant:
    """How a program is broken; ``told`` is a part of one of the check's reasons, ``site`` where states part."""

    edit: Callable[[Operations], None]
    told: str = "conversion: mean KLD"
    site: tuple[int | None, str] | None = None
    cause: str | None = None


def set_number(name: str, value: float) -> Callable[[Operations], None]:
    def edit(operations: Operations) -> None:
        operations[name].attributes["val"].immediateValue.tensor.floats.values[0] = value

    return edit


def rebind(operation: str, parameter: str, value: str, index: int = 0) -> Callable[[Operations], None]:
    """Give an operation another value to work on."""

    def edit(operations: Operations) -> None:
        operations[operation].inputs[parameter].arguments[index].name = value

    return edit


def swap(parameter: str, *pairs: tuple[str, str]) -> Callable[[Operations], None]:
    """Swap what pairs of operations work on."""

    def edit(operations: Operations) -> None:
        for pair in pairs:
            first, second = (operations[name].inputs[parameter].arguments[0] for name in pair)
            first.name, second.name = second.name, first.name

    return edit


def change_kind(operation: str, kind: str) -> Callable[[Operations], None]:
    def edit(operations: Operations) -> None:
        operations[operation].type = kind

    return edit


def swap_silu(operations: Operations) -> None:
    """silu of up_proj, times gate_proj."""
    prefix = MLP.format(0)
    swap("weight", (f"{prefix}gate_proj_output", f"{prefix}up_proj_output"))(operations)


def leave_out_the_last_layer(operations: Operations) -> None:
    for operation in operations.values():
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                is_last = operation.outputs and operation.outputs[0].name.startswith("model_final")
                if is_last and binding.name == "model_layers_1_output":
                    binding.name = "model_layers_0_output"


def turn_back(operations: Operations) -> None:
    """Queries of layer 1 turned the other way."""
    left, right = (operations[f"model_layers_1_q_rope_scaled_{side}"] for side in ("left", "right"))
    left.type, right.type = "add", "sub"


def write_late(operations: Operations) -> None:
    """Keys of layer 0 are written one position after their own."""

    def copy(name: str, new: str) -> None:
        made = operations[new] = type(operations[name])()
        made.CopyFrom(operations[name])
        made.outputs[0].name = new

    copy(operations["cache_0_begin"].inputs["values"].arguments[2].name, "one")
    operations["one"].attributes["val"].immediateValue.tensor.ints.values[0] = 1
    for name in ("past", "seen"):
        copy("past", f"late_{name}")
        late = operations[f"late_{name}"]
        late.type, late.inputs["x"].arguments[0].name, late.inputs["y"].arguments[0].name = "add", name, "one"
    for part, name in (("begin", "past"), ("end", "seen")):
        copy(f"cache_0_{part}", f"late_{part}")
        operations[f"late_{part}"].inputs["values"].arguments[1].name = f"late_{name}"
        operations["keyCache_0_after"].inputs[part].arguments[0].name = f"late_{part}"
    ordered = list(operations)
    new = ordered[ordered.index("one") :]
    place = ordered.index("keyCache_0_after")
    for name in [*new, *ordered[place : ordered.index("one")]]:  # what is new comes before the update
        operations[name] = operations.pop(name)


ATTENTION, MLP = "model_layers_{}_self_attn_", "model_layers_{}_mlp_"

MUTANTS: dict[str, Mutant] = {
    "the causal mask as zeros": Mutant(
        set_number("masked", 0.0), site=(0, "attention"), cause="the causal mask is missing"
    ),
    "the later tokens seen, the earlier ones hidden": Mutant(change_kind("is_later", "less"), site=(0, "attention")),
    "no token sees itself": Mutant(change_kind("is_later", "greater_equal"), site=(0, "attention")),
    "the mask at the least finite number": Mutant(set_number("masked", -65504.0), told="masked is -65504"),
    "eps of 1e-5": Mutant(set_number("root_eps", 1e-5**0.5), told="root_eps is 0.00316228"),
    "scores not scaled": Mutant(set_number("attention_scale", 1.0), told="attention_scale is 1", site=(0, "q_rope")),
    "q_norm and k_norm swapped": Mutant(
        swap("y", (ATTENTION.format(0) + "q_norm_output", ATTENTION.format(0) + "k_norm_output")),
        site=(0, "q_rope"),
        cause="q_norm and k_norm are swapped",
    ),
    "no k_norm": Mutant(
        rebind(ATTENTION.format(0) + "k_proj_by_head", "x", ATTENTION.format(0) + "k_proj_heads"), site=(0, "k_rope")
    ),
    "keys cached in place of values": Mutant(
        rebind("valueCache_1_update", "x", "model_layers_1_k_rope"), site=(1, "attention")
    ),
    "keys written one position late": Mutant(write_late, site=(0, "attention"), cause="keys are one position late"),
    "gate and up swapped": Mutant(swap_silu, site=(0, "mlp"), cause="gate_proj and up_proj are swapped"),
    "the residual taken after the norm": Mutant(
        rebind("model_layers_1_after_attention", "x", "model_layers_1_input_layernorm_output"),
        site=(1, "after_attention"),
    ),
    "queries turned the other way": Mutant(turn_back, site=(1, "q_rope")),
    "the last layer left out": Mutant(
        leave_out_the_last_layer, told="final (relative", site=(None, "final"), cause="layers from 1 on are left out"
    ),
}


@pytest.fixture(scope="module")
def edited(packaged: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A copy of the tiny int4 folder whose program, or whose file of weights, was edited."""

    def make(edit: Callable[[Operations], None]) -> Path:
        folder = tmp_path_factory.mktemp("edited") / "out"
        shutil.copytree(packaged("untied", "int4").folder, folder)
        file = open_coreml(folder)
        block = file.spec.mlProgram.functions["main"].block_specializations["CoreML8"]
        operations = {
            operation.outputs[0].name if operation.outputs else f"operation {i}": operation
            for i, operation in enumerate(block.operations)
        }
        edit(operations)
        copies = [type(operation).FromString(operation.SerializeToString()) for operation in operations.values()]
        del block.operations[:]
        block.operations.extend(copies)
        (file.package / MODEL_FILE).write_bytes(file.spec.SerializeToString())
        return folder

    return make


def check(written: Any, folder: Path | None = None, **options: Any) -> Report:
    return api.check(folder or written.folder, written.model, **options)


@pytest.mark.parametrize(("variant", "recipe"), [("untied", "int4"), ("yarn", "palette4"), ("tied", "fp32")])
def test_sound_folders_pass(packaged: Callable[..., Any], variant: str, recipe: str) -> None:
    report = check(packaged(variant, recipe))
    assert report.verdict == "pass", report.reasons
    assert (report.target, report.recipe, report.method) == ("coreml", recipe, "rtn")
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-10


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_caught(
    packaged: Callable[..., Any], edited: Callable[..., Path], caught: Callable[[str, Report], None], name: str
) -> None:
    mutant = MUTANTS[name]
    report = check(packaged("untied", "int4"), edited(mutant.edit))
    caught(name, report)
    assert report.verdict == "fail"
    assert any(mutant.told in reason for reason in report.reasons), report.reasons
    where = report.first_divergence
    assert mutant.site is None or (where is not None and (where.layer, where.site) == mutant.site), report.reasons
    assert mutant.cause is None or (where is not None and where.cause == mutant.cause)


def test_damaged_weights_are_caught(
    packaged: Callable[..., Any], tmp_path: Path, caught: Callable[[str, Report], None]
) -> None:
    written = packaged("untied", "int4")
    shutil.copytree(written.folder, tmp_path / "out")
    blob = open_coreml(written.folder).constants["model_layers_1_mlp_down_proj"]["data"]
    path = tmp_path / "out" / PACKAGE / WEIGHT_FILE
    data = bytearray(path.read_bytes())
    rows = np.frombuffer(bytes(data[blob.data_offset : blob.data_offset + blob.num_bytes]), np.uint8)
    data[blob.data_offset : blob.data_offset + blob.num_bytes] = ((rows << 4) | (rows >> 4)).tobytes()
    path.write_bytes(bytes(data))
    report = check(written, tmp_path / "out")
    caught("nibbles of down_proj in the other order", report)
    assert report.verdict == "fail"
    assert any("model.layers.1.mlp.down_proj" in reason for reason in report.values), report.values


def test_another_model_and_what_is_no_package(packaged: Callable[..., Any], tmp_path: Path) -> None:
    written = packaged("untied", "int4")
    report = check(packaged("yarn", "palette4"), written.folder)
    assert report.verdict == "fail"
    (tmp_path / "empty.mlpackage").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no \.mlpackage"):
        check(written, tmp_path / "empty.mlpackage")


def test_off_a_mac_core_ml_is_not_claimed(packaged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run.can_run_coreml()
    report = check(packaged("untied", "int4"))
    assert report.runtime.name.startswith("MIL executor")
    monkeypatch.setattr(run.sys, "platform", "darwin")
    assert run.can_run_coreml()


def test_core_ml_itself_where_there_is_one(packaged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac's MLModel is asked as coremltools documents it: make_state, predict with that state."""
    import coremltools

    written = packaged("untied", "int4")
    package = written.open()

    class Model:
        def __init__(self, path: str) -> None:
            assert path == str(written.export.package)

        def make_state(self) -> Any:
            return package.new_state()

        def predict(self, inputs: dict[str, Any], *, state: Any) -> dict[str, Any]:
            return dict(package.run(inputs, state=state, mode="fp16"))

    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    tokens = list(range(40, 60))
    here = CoremlSession(written.export.package, runs="fp16")
    there = CoremlSession(written.export.package, runs="coreml")
    np.testing.assert_array_equal(
        np.concatenate(list(there.run(tokens, chunk=7))), np.concatenate(list(here.run(tokens, chunk=7)))
    )
    monkeypatch.setattr(run, "can_run_coreml", lambda: True)
    report = check(written)
    assert (report.verdict, report.runtime.name) == ("pass", "Core ML")


def test_without_coremltools_it_is_said(packaged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    written, real = packaged("untied", "int4"), builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "coremltools":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="coremltools"):
        check(written)


@pytest.mark.parametrize("is_sound", [True, False])
def test_a_mac_confirms_the_transcript(
    packaged: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sound: bool
) -> None:
    """The example runs what a Mac runs; here the executor stands in for Core ML, once with its states forgotten."""
    import coremltools

    written = packaged("demo", "int4")
    shutil.copytree(written.folder, tmp_path / "out")
    write_transcript(tmp_path / "out", written.model)
    package = written.open()

    class Model:
        def __init__(self, _path: str, *, compute_units: Any) -> None:
            assert compute_units is coremltools.ComputeUnit.CPU_ONLY

        def make_state(self) -> Any:
            return package.new_state()

        def predict(self, inputs: dict[str, Any], *, state: Any) -> dict[str, Any]:
            return dict(package.run(inputs, state=state if is_sound else package.new_state(), mode="fp16"))

    monkeypatch.setattr(coremltools.models, "MLModel", Model)
    monkeypatch.setattr("sys.argv", ["coreml_confirm.py", str(tmp_path / "out"), "--units", "cpu"])
    path = Path(__file__).parents[3] / "examples" / "coreml_confirm.py"
    assert runpy.run_path(str(path))["main"]() == (0 if is_sound else 3)


def test_a_package_of_another_tool_is_judged_by_what_it_does(
    packaged: Callable[..., Any], edited: Callable[..., Path]
) -> None:
    def rename(operations: Operations) -> None:
        for operation in operations.values():
            for output in operation.outputs:
                output.name = output.name.replace("model_", "net_")
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    if binding.name:
                        binding.name = binding.name.replace("model_", "net_")

    folder = edited(rename)
    file = open_coreml(folder)
    for key in [key for key in file.spec.description.metadata.userDefined if key.startswith("qwen3_export.")]:
        del file.spec.description.metadata.userDefined[key]
    (file.package / MODEL_FILE).write_bytes(file.spec.SerializeToString())
    written = packaged("untied", "int4")
    report, ours = check(written, folder), check(written)
    assert report.verdict == "not_run", report.reasons
    assert report.end_to_end.mean_kld == pytest.approx(ours.end_to_end.mean_kld)


def test_a_large_model_is_decoded_little(packaged: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every run decodes every weight, token by token is a few tokens; the verdict is the same."""
    lengths: list[int] = []
    real = CoremlSession.caches

    def caches(self: CoremlSession, tokens: list[int], *, chunk: int) -> Any:
        lengths.append(len(tokens))
        return real(self, tokens, chunk=chunk)

    monkeypatch.setattr(CoremlSession, "caches", caches)
    assert check(packaged("untied", "int4")).verdict == "pass"
    monkeypatch.setattr(run, "KEPT_BYTES", 0)
    assert check(packaged("untied", "int4")).verdict == "pass"
    assert lengths[1] < lengths[0]
