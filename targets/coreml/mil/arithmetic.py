"""The two modes in which a program can run, exact and fp16, and the detection of overflow.

*exact* answers: is the graph right? Every float is computed in fp32, whatever its declared type. Nothing is rounded to
fp16: no ``cast``, no state, and no product of a compressed weight's scale and code. Constants have the values that the
file stores.

*fp16* answers: would a device that computes in fp16 stay finite, and how much accuracy would it lose? Each result that
is declared fp16 is rounded to fp16 when its operation is complete, and may overflow to infinity. Results declared fp32
stay fp32. Sums inside an operation are fp32, as fp16 matrix hardware keeps them. Attention is the exception: it is one
operation that stands for four, so each of its steps is rounded. No kernel of the Neural Engine or of a GPU is modelled:
not the order of summation, not approximate exponentials, not fused operations, not how the Neural Engine treats very
small numbers. Results on a device differ from these in the last bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwen3_export.targets.coreml.mil.calls import Rounding
from qwen3_export.targets.coreml.mil.element_types import ElementType

__all__ = ["EXACT", "FP16", "Arithmetic", "Overflow", "arithmetic", "broken"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """One of the two modes; ``rounds`` is True if results declared fp16 are rounded to fp16."""

    name: str
    rounds: bool

    def stored(self, result: Tensor, element: ElementType, *, moved: bool = False) -> Tensor:
        """Convert a result to the type in which it is kept. Use ``moved`` if all its elements are already rounded."""
        if element.torch_type is not None and result.dtype != element.torch_type:
            result = result.to(element.torch_type)
        return result if moved else self.rounding(element)(result)

    def round_in_place(self, result: Tensor, element: ElementType) -> Tensor:
        """Round a large result part by part, without a second copy. Nobody else may hold the tensor."""
        if not self.rounds or element.name != "fp16":
            return result
        whole = result.contiguous()
        flat = whole.view(-1)
        for start in range(0, flat.numel(), ROUNDED_AT_ONCE):
            part = flat[start : start + ROUNDED_AT_ONCE]
            part.copy_(part.to(torch.float16))
        return whole

    def rounding(self, element: ElementType) -> Rounding:
        """The function that rounds the numbers of a type."""
        return _to_fp16 if self.rounds and element.name == "fp16" else _unchanged


ROUNDED_AT_ONCE = 1 << 22
EXACT = Arithmetic(name="exact", rounds=False)
FP16 = Arithmetic(name="fp16", rounds=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """The first operation that gave inf from finite inputs, or NaN from inputs without NaN."""

    op: str
    output: str
    kind: str  # "inf" or "nan"


def arithmetic(mode: str) -> Arithmetic:
    """Get a mode by name. Raises ValueError for an unknown name."""
    for known in (EXACT, FP16):
        if known.name == mode:
            return known
    raise ValueError(f"mode {mode!r} is neither 'exact' nor 'fp16'")


def broken(results: Iterable[Tensor], inputs: Iterable[Tensor]) -> tuple[int, str] | None:
    """Find the result that the operation itself made "inf" or "nan". Infinities in its inputs (a mask) may pass."""
    found = [(i, result) for i, result in enumerate(results) if not _is_finite(result)]
    if not found:
        return None
    given = list(inputs)
    for index, result in found:
        if bool(result.isnan().any()):
            if not any(value.is_floating_point() and bool(value.isnan().any()) for value in given):
                return index, "nan"
        elif all(map(_is_finite, given)):
            return index, "inf"
    return None


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _to_fp16(value: Tensor) -> Tensor:
    return value.to(torch.float16).to(torch.float32)


def _unchanged(value: Tensor) -> Tensor:
    return value
