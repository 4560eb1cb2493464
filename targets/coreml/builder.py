"""A thin hand on coremltools' MIL builder: constants that lie in weight.bin, numbers, and one name for each value.

Constants are declared with arrays of stride 0, which have a shape and a type and no memory; where their bytes lie is
filled in when the program is serialized (``serialize``). Numbers are fp32 constants that are cast to the type of the
activations, so that a program run in fp32 has the true ones: 1e-6 in fp16 is 1 % off, and 128 ** -0.5 0.01 %.
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

# A value of a program, coremltools' Var; it publishes no types.
Var = Any


class ProgramBuilder:
    """Adds operators to the function that is open; each value takes the name that it is given."""

    def __init__(self, plan: WeightPlan, *, float_type: str) -> None:
        from coremltools.converters.mil.mil import Builder

        self.plan = plan
        self.dtype = "fp32" if float_type == "F32" else "fp16"
        self.mb = Builder
        self._weights: dict[str, Var] = {}
        self._numbers: dict[str, Var] = {}

    def op(self, op_type: str, *, name: str, **inputs: Any) -> Var:
        """One operator with one output, which has the operator's name."""
        return getattr(self.mb, op_type)(name=name, **inputs)

    def weight(self, name: str) -> Var:
        """A matrix or vector of the plan; declared where it is first asked for, the same value after."""
        if name not in self._weights:
            self._weights[name] = self._declare(name, self.plan.parts[name])
        return self._weights[name]

    def constant(self, name: str) -> Var:
        """A constant array of the plan."""
        if name not in self._weights:
            self._weights[name] = self._placeholder(self.plan.constants[name][0])
        return self._weights[name]

    def number(self, name: str, value: float) -> Var:
        """A number of the activations' type."""
        if name not in self._numbers:
            exact = self.mb.const(val=np.float32(value), name=name)
            self._numbers[name] = self.as_float(exact, name=f"{name}_{self.dtype}")
        return self._numbers[name]

    def as_float(self, x: Var, *, name: str) -> Var:
        """``x`` in the type of the activations."""
        return self.cast(x, self.dtype, name=name)

    def cast(self, x: Var, dtype: str, *, name: str) -> Var:
        """``x`` as fp16 or fp32, itself where it is that."""
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
    """numpy's type for each element; those of fewer than 8 bits are marked as such for coremltools."""
    from coremltools.converters.mil.mil import types

    names = ("fp16", "fp32", "int8", "uint8", "int4", "uint2", "uint3", "uint4", "uint6")
    return {name: np.dtype(types.nptype_from_builtin(getattr(types, name))) for name in names}
