"""The bound of ``shipped`` in fp16 packages: a mistake just above it fails, one just below fails another number.

The check models how some results are rounded to fp16. As shipped all are, so many times the modelled noise is allowed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bounds import around_the_bound

pytest.importorskip("coremltools")

import qwen3_export as qx
from qwen3_export.parity.report import Report
from qwen3_export.targets.coreml.names import MODEL_FILE
from qwen3_export.targets.coreml.read import open_coreml

Caught = Callable[[str, Report], None]
# Below what fp16 holds with all its digits: numbers around 1 keep some four of eleven
SMALL = 2.0**-20


@pytest.fixture
def edited(packaged: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """A new copy of a sound fp16 folder whose list of operations was edited."""
    folders = (tmp_path / str(i) for i in range(10))

    def make(edit: Callable[[list[Any]], list[Any]]) -> Path:
        folder = Path(shutil.copytree(packaged("tied", "fp16").folder, next(folders)))
        file = open_coreml(folder)
        block = file.spec.mlProgram.functions["main"].block_specializations["CoreML8"]
        operations = [copy_of(operation) for operation in edit([copy_of(operation) for operation in block.operations])]
        del block.operations[:]
        block.operations.extend(operations)
        (file.package / MODEL_FILE).write_bytes(file.spec.SerializeToString())
        return folder

    return make


def copy_of(operation: Any) -> Any:
    return type(operation).FromString(operation.SerializeToString())


def name_of(operation: Any) -> str:
    return operation.outputs[0].name if operation.outputs else ""


def with_scores_too_large(operations: list[Any], by: float) -> list[Any]:
    """Attention multiplies its scores by a scale that is a little too large."""
    (scale,) = (operation for operation in operations if name_of(operation) == "attention_scale")
    scale.attributes["val"].immediateValue.tensor.floats.values[0] *= 1 + by
    return operations


def with_tiny_numbers(operations: list[Any], name: str) -> list[Any]:
    """What ``name`` gives is multiplied by SMALL, lest it overflow, and divided by it again."""
    by_name = {name_of(operation): operation for operation in operations}
    made, number = by_name[name], copy_of(by_name["root_eps"])
    number.outputs[0].name, number.outputs[0].type.tensorType.dataType = (
        "small",
        made.outputs[0].type.tensorType.dataType,
    )
    value = number.attributes["val"]
    value.type.tensorType.dataType = number.outputs[0].type.tensorType.dataType
    value.immediateValue.tensor.bytes.values = np.float16(SMALL).tobytes()
    steps = [copy_of(by_name["model_layers_0_mlp_gated"]) for _ in range(2)]
    for step, kind, given, gives in zip(
        steps, ("mul", "real_div"), (f"{name}_whole", "tiny"), ("tiny", name), strict=True
    ):
        step.type = kind
        step.inputs["x"].arguments[0].name, step.inputs["y"].arguments[0].name = given, "small"
        step.outputs[0].CopyFrom(made.outputs[0])
        step.outputs[0].name = gives
    made.outputs[0].name = f"{name}_whole"
    place = operations.index(made) + 1
    return [*operations[:place], number, *steps, *operations[place:]]


def test_a_mistake_around_the_bound(packaged: Callable[..., Any], edited: Callable[..., Path]) -> None:
    model = packaged("tied", "fp16").model

    def check(size: float) -> Report:
        return qx.check(edited(lambda operations: with_scores_too_large(operations, size)), model)

    below, above = around_the_bound(check, probe=0.01)
    assert below.shipped.status == "pass"
    assert below.conversion.status == "fail"
    assert above.shipped.status == "fail"
    assert above.shipped.mean_kld < 2 * above.shipped.bound, "this one was to be just above"
    assert above.shipped.mean_kld < 3 * below.shipped.mean_kld


def test_numbers_too_small_for_fp16(packaged: Callable[..., Any], edited: Callable[..., Path], caught: Caught) -> None:
    """The same function where every result is whole, so that ``conversion`` sees nothing of it."""
    model = packaged("tied", "fp16").model
    report = qx.check(edited(lambda operations: with_tiny_numbers(operations, "model_layers_0_mlp")), model)
    caught("activations scaled below what fp16 holds", report)
    assert report.conversion.status == "pass"
    assert not report.metadata
    assert report.shipped.status == "fail"
