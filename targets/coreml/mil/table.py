"""The table of operations that the executor knows, by MIL name."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType

from qwen3_export.targets.coreml.mil import (
    ops_activation,
    ops_convolution,
    ops_creation,
    ops_elementwise,
    ops_indexing,
    ops_linear,
    ops_normalization,
    ops_reduction,
    ops_resizing,
    ops_shape,
    ops_slicing,
)
from qwen3_export.targets.coreml.mil.calls import Call, call_of
from qwen3_export.targets.coreml.mil.constexpr import CONSTEXPR

__all__ = ["CONSTANTS", "CONTROL", "MOVES", "STATES", "calls", "known"]

MODULES: tuple[ModuleType, ...] = (
    ops_activation,
    ops_convolution,
    ops_creation,
    ops_elementwise,
    ops_indexing,
    ops_linear,
    ops_normalization,
    ops_reduction,
    ops_resizing,
    ops_shape,
    ops_slicing,
)
CONSTANTS = frozenset({"const", *CONSTEXPR})
STATES = frozenset({"coreml_update_state", "read_state", "write_state"})
CONTROL = frozenset({"cond", "while_loop"})
# Their results hold only elements of the inputs: they need no rounding and cannot overflow.
MOVES = frozenset({*ops_shape.OPS, *ops_slicing.OPS, "gather", "gather_along_axis", "gather_nd", "identity", "select"})


@functools.cache
def calls() -> Mapping[str, Call]:
    """Every operation that is a function of its inputs, by name."""
    return {kind: call_of(function) for module in MODULES for kind, function in module.OPS.items()}


def known() -> frozenset[str]:
    """The kinds of operation that a program may have."""
    return CONSTANTS | STATES | CONTROL | calls().keys()
