"""Open a saved .mlpackage on any machine and run it without Core ML.

``open_package`` reads the program and checks the record of every constant in weight.bin, without reading a weight.
``run`` then computes the outputs operation by operation in torch on the CPU, in one of two modes (``arithmetic.py``):

    package = open_package("model.mlpackage")
    state = package.new_state()
    outputs = package.run({"inputIds": np.array([[1, 2, 3]], np.int32)}, state=state, mode="fp16")

This shows what the *package* computes: its graph, its weights, its states, and, in fp16 mode, whether numbers stay
finite when every result is rounded. It does not show what a kernel of the Neural Engine, of a GPU or of Apple's CPU
code computes: those fuse operations, sum in other orders, approximate functions, and have bugs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.errors import CheckpointError, UnsupportedModelError
from qwen3_export.files.damage import told_as_damage
from qwen3_export.files.inside import inside
from qwen3_export.files.json_file import parse_json
from qwen3_export.targets.coreml.extra import require_coremltools
from qwen3_export.targets.coreml.mil.arithmetic import Overflow, arithmetic
from qwen3_export.targets.coreml.mil.blobs import check_blob
from qwen3_export.targets.coreml.mil.calls import SpecVersion
from qwen3_export.targets.coreml.mil.constants import Constants
from qwen3_export.targets.coreml.mil.execute import Execution, Watch
from qwen3_export.targets.coreml.mil.features import Feature, checked, feature_of
from qwen3_export.targets.coreml.mil.plan import plan_of
from qwen3_export.targets.coreml.mil.program import Function, Literal, all_operations, read_function
from qwen3_export.targets.coreml.mil.table import CONSTANTS, known

__all__ = ["Outputs", "Package", "State", "open_package", "run"]

SYSTEMS = {6: "iOS 15", 7: "iOS 16", 8: "iOS 17", 9: "iOS 18", 10: "iOS 26"}


class Outputs(dict[str, NDArray[Any]]):
    """Outputs by name; ``overflow`` is the first operation whose result was not finite (checked in fp16 mode only)."""

    overflow: Overflow | None = None


class State:
    """The values of a package's states between calls. ``Package.new_state`` makes one, ``Package.run`` writes it."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self.values = values

    def numpy(self, name: str) -> NDArray[Any]:
        """A copy of one state's values."""
        return self.values[name].numpy().copy()

    def copy(self) -> State:
        """An independent state with the same values, for continuing one prompt in two ways."""
        return State({name: value.clone() for name, value in self.values.items()})


class Package:
    """One function of an opened package; use ``open_package`` to get one."""

    def __init__(self, path: Path, spec: Any, function: Function, description: Any, *, keep_weights: bool) -> None:
        self.path = path
        self.spec_version = int(spec.specificationVersion)
        self.metadata: Mapping[str, str] = dict(spec.description.metadata.userDefined)
        self._function = function
        self._operations = tuple(all_operations(function.body))
        self._constants = Constants((o for o in self._operations if o.kind in CONSTANTS), keep=keep_weights)
        self._elements = {v.name: v.type.element for v in self._variables()}
        self.inputs = self._features((v for v in function.inputs if not v.is_state), description.input)
        self.states = self._features((v for v in function.inputs if v.is_state), description.state)
        results = {v.name: v for v in self._variables()}
        named = (results[name] for name in function.body.outputs if name in results)
        self.outputs = self._features(named, description.output)

    @property
    def ops(self) -> Counter[str]:
        """The number of operations of each kind, constants included."""
        return Counter(operation.kind for operation in self._operations)

    @property
    def unknown_ops(self) -> tuple[str, ...]:
        """The kinds of operation that this executor does not know."""
        return tuple(sorted(self.ops.keys() - known()))

    def constant(self, name: str, *, mode: str = "exact") -> NDArray[Any] | str:
        """Get a constant as operations see it: decoded, fp16 as fp32. Raises KeyError for an unknown name."""
        value = self._constants.get(name, arithmetic(mode))
        return value.numpy().copy() if isinstance(value, Tensor) else str(value)

    def new_state(self) -> State:
        """Make the initial states, all zeros as on a device."""
        with told_as_damage(self.path):
            held = {n: self._elements[n].torch_type for n in self.states}
            return State({n: torch.zeros(f.shape, dtype=held[n]) for n, f in self.states.items()})

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        *,
        state: State | None = None,
        mode: str = "exact",
        watch: Watch | None = None,
    ) -> Outputs:
        """Compute the outputs. Floats are fp32 in the mode "exact", else of their declared type.

        ``state`` is written to; without one, the states begin with zeros and are discarded. ``watch`` is called with
        the kind, the name and the value of every result; the value is valid only during the call.

        Raises UnsupportedModelError, before anything runs, if the program has unknown operations, and CheckpointError
        if the inputs do not fit or an operation cannot run on its inputs.
        """
        if self.unknown_ops:
            raise UnsupportedModelError(
                f"{self.path}: the program has operations that this executor does not know: "
                f"{', '.join(self.unknown_ops)}"
            )
        chosen = arithmetic(mode)
        execution = Execution(
            path=self.path,
            constants=self._constants,
            states=(state or self.new_state()).values,
            arithmetic=chosen,
            version=SpecVersion(self.spec_version),
            watch=watch,
        )
        with torch.inference_mode(), told_as_damage(self.path):
            values = checked(inputs, self.inputs, self._elements)
            values = {name: chosen.stored(value, self._elements[name]) for name, value in values.items()}
            found = execution.run(self._plan, values)
        names = self._function.body.outputs
        outputs = Outputs((name, self._array(name, value, mode)) for name, value in zip(names, found, strict=True))
        outputs.overflow = execution.overflow
        return outputs

    @cached_property
    def _plan(self) -> Any:
        return plan_of(self._function.body)

    def _array(self, name: str, value: Tensor, mode: str) -> NDArray[Any]:
        """Copy a value, so that it shares memory with no state or constant."""
        element = self._elements.get(name)
        exact_float = element is None or (mode == "exact" and element.is_float)
        return np.array(value.numpy(), None if exact_float else element.numpy_type)  # type: ignore[union-attr]

    def _variables(self) -> Iterable[Any]:
        yield from self._function.inputs
        for operation in self._operations:
            yield from operation.outputs

    def _features(self, variables: Iterable[Any], descriptions: Iterable[Any]) -> Mapping[str, Feature]:
        by_name = {description.name: description for description in descriptions}
        return {v.name: feature_of(v, by_name.get(v.name)) for v in variables}


def open_package(path: str | Path, *, function_name: str | None = None, keep_weights: bool = False) -> Package:
    """Open a .mlpackage folder for running.

    ``function_name`` is required if the package has several functions. ``keep_weights`` keeps every decoded constant in
    memory in fp32; without it, only the constant in use is. Raises CheckpointError if a part of the package is missing,
    damaged or newer than this executor knows, and MissingExtraError without coremltools.
    """
    path = Path(path)
    model_file = _model_file(path)
    spec = _parsed(model_file)
    if spec.specificationVersion not in SYSTEMS:
        raise CheckpointError(
            f"{path}: is of specification version {spec.specificationVersion}; this executor knows "
            f"{min(SYSTEMS)} to {max(SYSTEMS)} ({SYSTEMS[min(SYSTEMS)]} to {SYSTEMS[max(SYSTEMS)]})"
        )
    if spec.WhichOneof("Type") != "mlProgram":
        raise CheckpointError(f"{path}: is no ML program but a {spec.WhichOneof('Type')}, which cannot be run here")
    name = _function_name(path, sorted(spec.mlProgram.functions), function_name)
    with told_as_damage(path):
        function = read_function(spec.mlProgram.functions[name], folder=model_file.parent)
        _check_blobs(function)
        return Package(path, spec, function, _description(spec, name), keep_weights=keep_weights)


def run(
    package: str | Path | Package,
    inputs: Mapping[str, NDArray[Any]],
    *,
    state: State | None = None,
    mode: str = "exact",
    watch: Watch | None = None,
) -> Outputs:
    """Run a package; a path is opened first. See ``Package.run``."""
    opened = package if isinstance(package, Package) else open_package(package)
    return opened.run(inputs, state=state, mode=mode, watch=watch)


def _model_file(path: Path) -> Path:
    """The program's file, which the manifest names."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such folder; a .mlpackage is one")
    try:
        manifest = parse_json((path / "Manifest.json").read_bytes())
        entry = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except OSError as error:
        raise CheckpointError(f"{path}: has no Manifest.json, so it is no .mlpackage, or not a whole one") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'Manifest.json'}: does not say which file is the model") from error
    file = inside(path / "Data", entry, named_by=path / "Manifest.json")
    if not file.is_file():
        raise CheckpointError(f"{file}: is missing, though the manifest names it; copy the whole package")
    return file


def _parsed(file: Path) -> Any:
    """The program's protobuf."""
    require_coremltools("opening a .mlpackage")
    from coremltools.proto import Model_pb2
    from google.protobuf.message import DecodeError

    spec = Model_pb2.Model()
    try:
        spec.ParseFromString(file.read_bytes())
    except (DecodeError, OSError) as error:
        raise CheckpointError(f"{file}: is damaged or no Core ML model; copy the package again") from error
    return spec


def _function_name(path: Path, names: list[str], wanted: str | None) -> str:
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        told = "and none was named" if wanted is None else f"none of them {wanted}"
        raise CheckpointError(f"{path}: has the functions {', '.join(names)}, {told}; choose one by function_name")
    return wanted


def _description(spec: Any, name: str) -> Any:
    """Descriptions of inputs, outputs and states: the function's if there are several functions, else the model's."""
    return next((each for each in spec.description.functions if each.name == name), spec.description)


def _check_blobs(function: Function) -> None:
    for operation in all_operations(function.body):
        for bindings in operation.inputs.values():
            for binding in bindings:
                if isinstance(binding, Literal) and binding.blob is not None:
                    check_blob(binding.blob)
