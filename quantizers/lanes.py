"""Eight float32 numbers as one value, for kernels.

The search for a block's scales does the same arithmetic on many small groups of weights. Whether a compiler turns a
loop over groups into vector instructions, and keeps its sums in registers, depends on alias analysis and cost models. A
kernel for which it does not is five times slower and looks the same. So kernels here ask for vectors: ``Lanes`` is
LLVM's vector of eight floats, one lane for each group. ``a * b + c`` on it is one instruction on AVX, and two on SSE
and NEON, because LLVM splits vectors that a machine does not have. No sum is taken across lanes, so the result is the
same for every vector width.

    x = load(values, 8 * i)                 # values[8 * i : 8 * i + 8]
    code = clamp(rint(x * inverse), low, high)
    total = fma(code, x, total)

Arithmetic operators and comparisons take two ``Lanes``; ``splat`` makes one from a number. A comparison gives a mask,
which ``where`` and ``&`` take. All of it works inside numba-compiled functions only.
"""

# ruff: noqa: ARG001 -- the parameters of an intrinsic are its signature; its code generator gets them in one tuple

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from qwen3_export.quantizers.compile import inlined

__all__ = [
    "WIDTH",
    "Lanes",
    "clamp",
    "fma",
    "lane",
    "largest_lane",
    "load",
    "load_apart",
    "magnitude",
    "maximum",
    "minimum",
    "rint",
    "splat",
    "square_root",
    "store",
    "sum_of_lanes",
    "where",
]

WIDTH = 8
Lanes = Any
"""Eight floats, in annotations. Only numba sees such values, and it infers types by itself."""

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, WIDTH)
_BITS = ir.VectorType(ir.IntType(1), WIDTH)
_INDEX = ir.IntType(32)


class LanesType(types.Type):
    """Numba's name for eight floats."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


class MaskType(types.Type):
    """Numba's name for eight truth values."""

    def __init__(self) -> None:
        super().__init__(name="LanesMask")


_lanes = LanesType()
_mask = MaskType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _VECTOR)


@register_model(MaskType)
class _MaskModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, _BITS)


def _define_operator(function: Callable[..., Any], *, emit: Callable[..., Any], arguments: Any, result: Any) -> None:
    """Teach numba one operator on lanes: its types, and the instruction that ``emit`` builds."""

    @infer_global(function)
    class _Template(ConcreteTemplate):  # type: ignore[misc]
        cases = (signature(result, *arguments),)

    @lower_builtin(function, *arguments)  # type: ignore[untyped-decorator]
    def _lower(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        return emit(builder, *values)


def _comparison(symbol: str) -> Callable[..., Any]:
    return lambda builder, a, b: builder.fcmp_ordered(symbol, a, b)


for _function, _emit in (
    (operator.add, lambda builder, a, b: builder.fadd(a, b)),
    (operator.sub, lambda builder, a, b: builder.fsub(a, b)),
    (operator.mul, lambda builder, a, b: builder.fmul(a, b)),
    (operator.truediv, lambda builder, a, b: builder.fdiv(a, b)),
):
    _define_operator(_function, emit=_emit, arguments=(_lanes, _lanes), result=_lanes)
for _function, _symbol in ((operator.lt, "<"), (operator.gt, ">"), (operator.le, "<="), (operator.ge, ">=")):
    _define_operator(_function, emit=_comparison(_symbol), arguments=(_lanes, _lanes), result=_mask)
_define_operator(operator.and_, emit=lambda builder, a, b: builder.and_(a, b), arguments=(_mask, _mask), result=_mask)
_define_operator(operator.or_, emit=lambda builder, a, b: builder.or_(a, b), arguments=(_mask, _mask), result=_mask)
_define_operator(operator.neg, emit=lambda builder, a: builder.fneg(a), arguments=(_lanes,), result=_lanes)


@intrinsic  # type: ignore[untyped-decorator]
def load(_context: Any, array: Any, index: Any) -> Any:
    """``array[index : index + 8]`` of a contiguous float32 array."""

    def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = _vector_pointer(context, builder, sig, values)
        loaded = builder.load(pointer)
        loaded.align = 4
        return loaded

    return _lanes(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def load_apart(_context: Any, array: Any, index: Any, stride: Any) -> Any:
    """``array[index]``, ``array[index + stride]``, … of a contiguous float32 array: element 0 of eight groups."""

    def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        data = context.make_array(sig.args[0])(context, builder, values[0]).data
        gathered, index = ir.Constant(_VECTOR, ir.Undefined), values[1]
        for k in range(WIDTH):
            number = builder.load(builder.gep(data, [index]))
            gathered = builder.insert_element(gathered, number, ir.Constant(_INDEX, k))
            index = builder.add(index, values[2])
        return gathered

    return _lanes(array, types.intp, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """``array[index : index + 8] = value``."""

    def generate(context: Any, builder: Any, sig: Any, values: Any) -> Any:
        pointer = _vector_pointer(context, builder, sig, values)
        builder.store(values[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def splat(_context: Any, number: Any) -> Any:
    """The same number in all lanes."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        single = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), values[0], ir.Constant(_INDEX, 0))
        return builder.shuffle_vector(
            single, ir.Constant(_VECTOR, ir.Undefined), ir.Constant(ir.VectorType(_INDEX, WIDTH), [0] * WIDTH)
        )

    return _lanes(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]
def lane(_context: Any, value: Any, index: Any) -> Any:
    """The number in one lane."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return builder.extract_element(values[0], builder.trunc(values[1], _INDEX))

    return types.float32(_lanes, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]
def sum_of_lanes(_context: Any, value: Any) -> Any:
    """The sum over lanes, pairwise: (0+4)+(2+6) + (1+5)+(3+7), always in this order."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        parts = [builder.extract_element(values[0], ir.Constant(_INDEX, k)) for k in range(WIDTH)]
        while len(parts) > 1:
            half = len(parts) // 2
            parts = [builder.fadd(a, b) for a, b in zip(parts[:half], parts[half:], strict=True)]
        return parts[0]

    return types.float32(_lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def where(_context: Any, mask: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where the mask holds, ``no`` in the others."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return builder.select(*values)

    return _lanes(_mask, _lanes, _lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def minimum(_context: Any, a: Any, b: Any) -> Any:
    """The smaller of the two in each lane."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *values), *values)

    return _lanes(_lanes, _lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def maximum(_context: Any, a: Any, b: Any) -> Any:
    """The larger of the two in each lane."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *values), *values)

    return _lanes(_lanes, _lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def fma(_context: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, in one rounding where the machine has an instruction for it."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return _call(builder, "llvm.fmuladd", *values)

    return _lanes(_lanes, _lanes, _lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def rint(_context: Any, value: Any) -> Any:
    """The nearest integer, ties to even."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return _call(builder, "llvm.rint", *values)

    return _lanes(_lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def magnitude(_context: Any, value: Any) -> Any:
    """The absolute value."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return _call(builder, "llvm.fabs", *values)

    return _lanes(_lanes), generate


@intrinsic  # type: ignore[untyped-decorator]
def square_root(_context: Any, value: Any) -> Any:
    """The square root."""

    def generate(_context: Any, builder: Any, _sig: Any, values: Any) -> Any:
        return _call(builder, "llvm.sqrt", *values)

    return _lanes(_lanes), generate


@inlined
def clamp(value: Lanes, low: Lanes, high: Lanes) -> Lanes:
    """The value, or the nearer end where it lies outside."""
    return minimum(maximum(value, low), high)


@inlined
def largest_lane(value: Lanes) -> Any:
    """The largest number of all lanes."""
    largest = lane(value, 0)
    for k in range(1, WIDTH):
        largest = max(largest, lane(value, k))
    return largest


def _call(builder: Any, name: str, *values: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * len(values))
    function = cgutils.get_or_insert_function(builder.module, kind, f"{name}.v{WIDTH}f32")
    return builder.call(function, values)


def _vector_pointer(context: Any, builder: Any, sig: Any, values: Any) -> Any:
    array = context.make_array(sig.args[0])(context, builder, values[0])
    return builder.bitcast(builder.gep(array.data, [values[1]]), _VECTOR.as_pointer())
