"""Opening packages: what they say of themselves, and everything that can be wrong with one or with its inputs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qwen3_export.errors import CheckpointError, UnsupportedModelError
from qwen3_export.targets.coreml.mil import open_package, run

coremltools = pytest.importorskip("coremltools")

X = {"x": np.ones((2, 4), np.float32)}
WEIGHT = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
MODEL, WEIGHTS = Path("Data/com.apple.CoreML/model.mlmodel"), Path("Data/com.apple.CoreML/weights/weight.bin")


def linear(mb: Any, x: Any, cache: Any) -> dict[str, Any]:
    y = mb.linear(x=x, weight=WEIGHT, name="projected")
    return {"y": mb.add(x=y, y=mb.cast(x=mb.read_state(input=cache), dtype="fp32"))}


@pytest.fixture(scope="module")
def saved(programs: Any) -> Path:
    path: Path = programs.save(linear, X, states={"cache": ((2, 16), "fp16")})
    return path


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """The package, to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model.mlpackage"))


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a package's protobuf."""
    from coremltools.proto import Model_pb2

    spec = Model_pb2.Model()
    spec.ParseFromString((path / MODEL).read_bytes())
    change(spec)
    (path / MODEL).write_bytes(spec.SerializeToString())


def operations(spec: Any) -> Any:
    (function,) = spec.mlProgram.functions.values()
    return function.block_specializations[function.opset].operations


def test_a_package_says_what_it_takes_and_gives(saved: Path) -> None:
    package = open_package(saved)
    assert {n: str(f) for n, f in package.inputs.items()} == {"x": "fp32 [2, 4]"}
    assert {n: str(f) for n, f in package.outputs.items()} == {"y": "fp32 [2, 16]"}
    assert {n: str(f) for n, f in package.states.items()} == {"cache": "fp16 [2, 16]"}
    assert package.spec_version == 9
    assert package.metadata["com.github.apple.coremltools.version"] == coremltools.__version__
    assert package.ops["linear"] == 1
    assert package.unknown_ops == ()


def test_one_call_opens_and_runs(saved: Path) -> None:
    np.testing.assert_allclose(run(saved, X)["y"], X["x"] @ WEIGHT.T, rtol=1e-6)


def test_weights_are_kept_only_where_that_is_asked_for(programs: Any) -> None:
    big = np.random.default_rng(0).normal(size=(700, 700)).astype(np.float32)
    x = {"x": np.ones((1, 700), np.float32)}
    path = programs.save(lambda mb, x: {"y": mb.linear(x=x, weight=big, name="big")}, x)
    lean, kept = open_package(path), open_package(path, keep_weights=True)
    np.testing.assert_array_equal(lean.run(x)["y"], kept.run(x)["y"])
    held = [sum(value.nbytes for value in p._constants._kept.values()) for p in (lean, kept)]
    assert held[0] < 10_000 < big.nbytes <= held[1]


def test_ranged_and_listed_shapes(tmp_path: Path) -> None:
    import torch

    model = torch.jit.trace(torch.nn.Linear(4, 2).eval(), torch.zeros(1, 4))
    for name, shape in (
        ("range", coremltools.Shape((coremltools.RangeDim(1, 8, default=3), 4))),
        ("listed", coremltools.EnumeratedShapes([(1, 4), (5, 4)])),
    ):
        inputs = [coremltools.TensorType(name="x", shape=shape)]
        model_kind = {"minimum_deployment_target": coremltools.target.iOS18, "skip_model_load": True}
        model_kind["compute_precision"] = coremltools.precision.FLOAT32
        path = tmp_path / f"{name}.mlpackage"
        coremltools.convert(model, inputs=inputs, **model_kind).save(str(path))
    packages = {name: open_package(tmp_path / f"{name}.mlpackage") for name in ("range", "listed")}
    assert {n: str(p.inputs["x"]) for n, p in packages.items()} == {
        "range": "fp32 [1..8, 4]",
        "listed": "fp32 [1, 4] or [5, 4]",
    }
    assert packages["range"].inputs["x"].shape == (3, 4)
    for name, good, bad in (("range", 8, 9), ("listed", 5, 2)):
        (output,) = packages[name].run({"x": np.zeros((good, 4), np.float32)}).values()
        assert output.shape == (good, 2)
        with pytest.raises(CheckpointError, match=rf"the input x is float32 \[{bad}, 4\]; the package takes fp32"):
            packages[name].run({"x": np.zeros((bad, 4), np.float32)})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "the input x is missing; the package takes x: fp32"),
        ({**X, "y": X["x"]}, "there is no input y; the package takes x: fp32"),
        ({"x": X["x"][0]}, r"the input x is float32 \[4\]; the package takes fp32 \[2, 4\]"),
        ({"x": X["x"].astype(np.int32)}, r"the input x is int32 \[2, 4\]; the package takes fp32 \[2, 4\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(saved: Path, inputs: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        run(saved, inputs)


def test_integers_that_do_not_fit_are_refused(programs: Any) -> None:
    inputs = {"ids": np.array([1], np.int64)}
    package = programs.open(lambda mb, ids: {"y": mb.add(x=ids, y=np.int32(1))}, {"ids": np.array([1], np.int32)})
    assert package.run(inputs)["y"].tolist() == [2]
    with pytest.raises(CheckpointError, match="the input ids has numbers that int32 does not hold"):
        package.run({"ids": np.array([1 << 40])})


def test_unknown_operations_are_refused_by_name_before_anything_runs(copied: Path) -> None:
    def rename(spec: Any) -> None:
        for operation in operations(spec):
            operation.type = {"linear": "quantum_linear", "add": "add_nicely"}.get(operation.type, operation.type)

    edit(copied, rename)
    package, seen = open_package(copied), []
    assert package.unknown_ops == ("add_nicely", "quantum_linear")
    with pytest.raises(UnsupportedModelError, match=r"does not know: add_nicely, quantum_linear$"):
        package.run(X, watch=lambda *found: seen.append(found))
    assert not seen


def test_an_input_that_an_operation_should_not_have_is_refused(copied: Path) -> None:
    def add(spec: Any) -> None:
        operation = next(o for o in operations(spec) if o.type == "linear")
        operation.inputs["spin"].CopyFrom(operation.inputs["x"])

    edit(copied, add)
    with pytest.raises(CheckpointError, match="linear projected cannot be run: its input spin is not known"):
        run(copied, X)


def test_a_result_of_another_shape_than_declared_is_refused(copied: Path) -> None:
    def shrink(spec: Any) -> None:
        operation = next(o for o in operations(spec) if o.type == "linear")
        operation.outputs[0].type.tensorType.dimensions[1].constant.size = 15

    edit(copied, shrink)
    with pytest.raises(CheckpointError, match=r"linear projected gives \[2, 16\] where the program declares \[2, 15\]"):
        run(copied, X)


def test_a_newer_specification_is_refused(copied: Path) -> None:
    edit(copied, lambda spec: setattr(spec, "specificationVersion", 11))
    with pytest.raises(
        CheckpointError, match=r"specification version 11; this executor knows 6 to 10 \(iOS 15 to iOS 26\)"
    ):
        open_package(copied)


def test_a_model_that_is_no_program_is_refused(copied: Path) -> None:
    edit(copied, lambda spec: spec.neuralNetwork.SetInParent())
    with pytest.raises(CheckpointError, match="is no ML program but a neuralNetwork"):
        open_package(copied)


def test_one_of_several_functions_has_to_be_named(copied: Path) -> None:
    edit(copied, lambda spec: spec.mlProgram.functions["prefill"].CopyFrom(spec.mlProgram.functions["main"]))
    with pytest.raises(CheckpointError, match="has the functions main, prefill, and none was named"):
        open_package(copied)
    with pytest.raises(CheckpointError, match="has the functions main, prefill, none of them decode"):
        open_package(copied, function_name="decode")
    assert open_package(copied, function_name="prefill").run(X)["y"].shape == (2, 16)


def test_missing_parts_are_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no such folder"):
        open_package(tmp_path / "nowhere.mlpackage")
    (copied / WEIGHTS).rename(tmp_path / "weight.bin")
    with pytest.raises(CheckpointError, match=r"weight\.bin: cannot be read \(No such file or directory\)"):
        open_package(copied)
    (copied / MODEL).unlink()
    with pytest.raises(CheckpointError, match=r"model\.mlmodel: is missing"):
        open_package(copied)
    (copied / "Manifest.json").write_text(json.dumps({"itemInfoEntries": {}}))
    with pytest.raises(CheckpointError, match="does not say which file is the model"):
        open_package(copied)
    (copied / "Manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no Manifest\.json"):
        open_package(copied)


@pytest.mark.parametrize("left", [0, 32, 80, 200])
def test_cut_off_weights_are_noticed_when_the_package_is_opened(copied: Path, left: int) -> None:
    weights = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(weights[:left])
    with pytest.raises(CheckpointError, match=r"weight\.bin: (is cut off|ends inside)"):
        open_package(copied)


def test_a_damaged_program_is_refused(copied: Path) -> None:
    (copied / MODEL).write_bytes((copied / MODEL).read_bytes()[:-7])
    with pytest.raises(CheckpointError, match="is damaged or no Core ML model"):
        open_package(copied)


def test_weights_outside_the_package_are_refused(copied: Path) -> None:
    def move(spec: Any) -> None:
        for operation in operations(spec):
            if operation.attributes["val"].HasField("blobFileValue"):
                operation.attributes["val"].blobFileValue.fileName = "@model_path/../../../elsewhere.bin"

    edit(copied, move)
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        open_package(copied)
