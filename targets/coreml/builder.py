"""A thin wrapper over coremltools' MIL builder: constants in weight.bin, numbers, and one name for each value.

Constants are declared with arrays of stride 0, which have a shape and a type but take no memory. Their offsets are
filled in when the program is serialized (``serialize``). Numbers are fp32 constants, cast to the type of the
activations, so a program that runs in fp32 has the exact numbers: in fp16, 1e-6 is off by 1 % and 128 ** -0.5 by 0.01
%.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from qwen3_export.targets.coreml.blobs import Blob
from qwen3_export.targets.coreml.layout import WeightPlan
from qwen3_export.targets.coreml.storage import CODES, INDICES, VALUES

__all__ = ["ProgramBuilder", "Var"]

# A value of a program: coremltools' Var, for which it publishes no types.
Var = Any


class ProgramBuilder:
    """Adds operators to the open function and gives each value its name."""

    def __init__(self, plan: WeightPlan, *, float_type: str) -> None:
        from coremltools.converters.mil.mil import Builder

        self.plan = plan
        self.dtype = "fp32" if float_type == "F32" else "fp16"
        self.mb = Builder
        self._weights: dict[str, Var] = {}
        self._numbers: dict[str, Var] = {}

    def op(self, op_type: str, *, name: str, **inputs: Any) -> Var:
        """Add an operator with one output, which takes the name ``name``."""
        return getattr(self.mb, op_type)(name=name, **inputs)

    def weight(self, name: str) -> Var:
        """A matrix or vector of the plan. It is declared on first use, and shared afterwards."""
        if name not in self._weights:
            self._weights[name] = self._declare(name, self.plan.parts[name])
        return self._weights[name]

    def constant(self, name: str) -> Var:
        """A constant array of the plan."""
        if name not in self._weights:
            self._weights[name] = self._placeholder(self.plan.constants[name][0])
        return self._weights[name]

    def number(self, name: str, value: float) -> Var:
        """A number in the type of the activations."""
        if name not in self._numbers:
            exact = self.mb.const(val=np.float32(value), name=name)
            self._numbers[name] = self.as_float(exact, name=f"{name}_{self.dtype}")
        return self._numbers[name]

    def as_float(self, x: Var, *, name: str) -> Var:
        """Cast ``x`` to the type of the activations."""
        return self.cast(x, self.dtype, name=name)

    def cast(self, x: Var, dtype: str, *, name: str) -> Var:
        """Cast ``x`` to fp16 or fp32, or return it if it already has this type."""
        from coremltools.converters.mil.mil import types

        return x if types.builtin_to_string(x.dtype) == dtype else self.op("cast", x=x, dtype=dtype, name=name)

    def _declare(self, name: str, parts: Mapping[str, Blob]) -> Var:
        arrays = {part: self._placeholder(blob) for part, blob in parts.items()}
        if VALUES in arrays:
            return arrays[VALUES]
        assert CODES in arrays or INDICES in arrays
        op_type = "constexpr_blockwise_shift_scale" if CODES in arrays else "constexpr_lut_to_dense"
        return self.op(op_type, name=name, **arrays)

    def _placeholder(self, blob: Blob) -> Var:
        array = np.broadcast_to(np.zeros((), _numpy_types()[blob.element]), blob.shape)
        return self.mb.const(val=array, name=blob.name)


@cache
def _numpy_types() -> Mapping[str, np.dtype[Any]]:
    """The numpy type of each element type; coremltools needs special ones for fewer than 8 bits."""
    from coremltools.converters.mil.mil import types

    names = ("fp16", "fp32", "int8", "uint8", "int4", "uint2", "uint3", "uint4", "uint6")
    return {name: np.dtype(types.nptype_from_builtin(getattr(types, name))) for name in names}
