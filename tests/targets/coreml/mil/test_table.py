"""The table of operations against coremltools' registry: no name is misspelt, no parameter forgotten."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

from qwen3_export.targets.coreml.mil.table import CONSTANTS, MOVES, STATES, calls, known

pytest.importorskip("coremltools")

# Values that a device does not repeat (random), lists and classes that no tensor holds, recurrent layers, and what
# samples images at computed places: refused by name.
REFUSED = {
    "affine",
    "classify",
    "conv_quantized",
    "crop_resize",
    "gru",
    "list_gather",
    "list_length",
    "list_read",
    "list_scatter",
    "list_write",
    "lstm",
    "make_list",
    "non_maximum_suppression",
    "random_bernoulli",
    "random_categorical",
    "random_normal",
    "random_uniform",
    "resample",
    "rnn",
}
WRITTEN = {"write_state"}  # what coreml_update_state becomes when a package is saved


@pytest.fixture(scope="module")
def registry() -> dict[str, dict[Any, Any]]:
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    core = {name: versions for name, versions in SSAOpRegistry.core_ops.items() if name[0] != "_"}
    return {**core, "coreml_update_state": {}}


def test_every_operation_of_coremltools_is_known_or_refused_on_purpose(registry: dict[str, Any]) -> None:
    assert known() - WRITTEN == registry.keys() - REFUSED


def test_functions_have_the_parameters_of_every_version(registry: dict[str, Any]) -> None:
    for kind, call in calls().items():
        specs = [version.input_spec.input_types for version in registry[kind].values()]
        parameters = inspect.signature(call.function).parameters
        names = {name for spec in specs for name in spec}
        assert names == parameters.keys() - call.injected.keys(), kind
        optional = {name for name in names if any(name not in spec or spec[name].optional for spec in specs)}
        assert optional == {name for name in names if parameters[name].default is not inspect.Parameter.empty}, kind


def test_the_groups_are_of_known_operations() -> None:
    assert calls().keys() >= MOVES
    assert not (CONSTANTS | STATES) & calls().keys()
