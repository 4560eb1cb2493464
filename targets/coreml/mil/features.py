"""Inputs, outputs and states that a package declares: names, element types and allowed shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.errors import CheckpointError
from qwen3_export.targets.coreml.mil.element_types import ElementType, to_torch
from qwen3_export.targets.coreml.mil.program import Variable

__all__ = ["Feature", "checked", "feature_of"]

Range = tuple[int, int | None]  # inclusive; None means no upper limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """An input, output or state.

    ``ranges`` has the smallest and largest size of each axis. ``shapes`` lists the only allowed shapes if the package
    enumerates them, else it is empty. ``shape`` is the default shape. ``default`` is the value of an optional input
    that is left out, or None if the input is required.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    ranges: tuple[Range, ...]
    shapes: tuple[tuple[int, ...], ...] = ()
    default: float | None = None

    def allows(self, shape: tuple[int, ...]) -> bool:
        if self.shapes:
            return shape in self.shapes
        return len(shape) == len(self.ranges) and all(
            low <= size and (high is None or size <= high) for size, (low, high) in zip(shape, self.ranges, strict=True)
        )

    def __str__(self) -> str:
        """The type as messages show it, for example ``int32 [1, 1..2048]``."""
        if self.shapes:
            return f"{self.dtype} {' or '.join(str(list(shape)) for shape in self.shapes)}"
        sizes = (str(low) if low == high else f"{low}..{'' if high is None else high}" for low, high in self.ranges)
        return f"{self.dtype} [{', '.join(sizes)}]"


def feature_of(variable: Variable, description: Any | None) -> Feature:
    """Combine a variable of the program with the model's description of it (a ``FeatureDescription``)."""
    declared = variable.type.shape
    ranges: tuple[Range, ...] = tuple((1, None) if size is None else (size, size) for size in declared)
    shapes: tuple[tuple[int, ...], ...] = ()
    shape, default = tuple(low for low, _ in ranges), None
    array = _array_type(description)
    if array is not None and len(array.shape) == len(declared):
        shape = tuple(array.shape)
        flexible = array.WhichOneof("ShapeFlexibility")
        if flexible == "shapeRange":
            ranges = tuple(map(_range, array.shapeRange.sizeRanges))
        elif flexible == "enumeratedShapes":
            shapes = tuple(tuple(each.shape) for each in array.enumeratedShapes.shapes)
        if description is not None and description.type.isOptional:
            default = float(getattr(array, array.WhichOneof("defaultOptionalValue") or "", 0.0))
    return Feature(
        name=variable.name,
        dtype=variable.type.element.name,
        shape=shape,
        ranges=ranges,
        shapes=shapes,
        default=default,
    )


def checked(
    given: Mapping[str, NDArray[Any]], features: Mapping[str, Feature], elements: Mapping[str, ElementType]
) -> dict[str, Tensor]:
    """Convert inputs to tensors. Raises CheckpointError if a name, a shape or a type is not what the package takes."""
    unknown = sorted(given.keys() - features.keys())
    missing = sorted(n for n, f in features.items() if n not in given and f.default is None)
    if unknown or missing:
        wrong = f"there is no input {', '.join(unknown)}" if unknown else f"the input {', '.join(missing)} is missing"
        raise CheckpointError(f"{wrong}; the package takes {', '.join(f'{n}: {f}' for n, f in features.items())}")
    return {name: _tensor(given.get(name), feature, elements[name]) for name, feature in features.items()}


def _tensor(given: NDArray[Any] | None, feature: Feature, element: ElementType) -> Tensor:
    if given is None:
        return torch.full(feature.shape, feature.default or 0, dtype=element.torch_type)
    array = np.asarray(given)
    kinds = "f" if element.is_float else ("b" if element.name == "bool" else "iu")
    if array.dtype.kind not in kinds or not feature.allows(array.shape):
        raise CheckpointError(
            f"the input {feature.name} is {array.dtype.name} {list(array.shape)}; the package takes {feature}"
        )
    if element.numpy_type.kind in "iu" and array.size:
        limits = np.iinfo(element.numpy_type)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise CheckpointError(f"the input {feature.name} has numbers that {feature.dtype} does not hold")
        array = array.astype(element.numpy_type)
    return to_torch(array)


def _range(size: Any) -> Range:
    return int(size.lowerBound), None if size.upperBound < 0 else int(size.upperBound)


def _array_type(description: Any | None) -> Any | None:
    if description is None:
        return None
    kind = description.type.WhichOneof("Type")
    if kind == "multiArrayType":
        return description.type.multiArrayType
    return description.type.stateType.arrayType if kind == "stateType" else None
