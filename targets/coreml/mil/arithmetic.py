"""The two arithmetics in which a program is run, and how the step from finite to infinite is noticed.

*exact* asks whether the graph is right. Every float is fp32, whatever its declared type; a ``cast`` to fp16 rounds
nothing, nor does a state, nor the product of a compressed weight's scale and code. Constants are what the file holds.

*fp16* asks whether a device that computes in fp16 would stay finite, and what it would lose. Every result that is
declared fp16 is rounded to fp16 once it is whole, with overflow to infinity; what is declared fp32 stays fp32. Within
an operation sums are fp32, as fp16 hardware that multiplies matrices keeps them; only attention, one operation for
four, is rounded at each of its steps. No kernel of the Neural Engine or of a GPU is modelled: neither their order of
summation, nor approximate exponentials, nor which operations they fuse, nor what the Neural Engine does to numbers
that are very small. On a device, numbers differ from these in their last bits.
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
    """Whether results that are declared fp16 are rounded to it."""

    name: str
    rounds: bool

    def stored(self, result: Tensor, element: ElementType, *, moved: bool = False) -> Tensor:
        """A result as it is kept; ``moved`` where it holds only elements that are rounded already."""
        if element.torch_type is not None and result.dtype != element.torch_type:
            result = result.to(element.torch_type)
        return result if moved else self.rounding(element)(result)

    def round_in_place(self, result: Tensor, element: ElementType) -> Tensor:
        """A large result that nobody else holds, some elements at a time: a copy of an embedding is a lot."""
        if not self.rounds or element.name != "fp16":
            return result
        whole = result.contiguous()
        flat = whole.view(-1)
        for start in range(0, flat.numel(), ROUNDED_AT_ONCE):
            part = flat[start : start + ROUNDED_AT_ONCE]
            part.copy_(part.to(torch.float16))
        return whole

    def rounding(self, element: ElementType) -> Rounding:
        """What every number of a type goes through."""
        return _to_fp16 if self.rounds and element.name == "fp16" else _unchanged


ROUNDED_AT_ONCE = 1 << 22
EXACT = Arithmetic(name="exact", rounds=False)
FP16 = Arithmetic(name="fp16", rounds=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Overflow:
    """The first operation of a run whose result was not finite though its inputs were, or NaN though none was."""

    op: str
    output: str
    kind: str  # "inf" or "nan"


def arithmetic(mode: str) -> Arithmetic:
    """The arithmetic by its name; ValueError for another name."""
    for known in (EXACT, FP16):
        if known.name == mode:
            return known
    raise ValueError(f"mode {mode!r} is neither 'exact' nor 'fp16'")


def broken(results: Iterable[Tensor], inputs: Iterable[Tensor]) -> tuple[int, str] | None:
    """Which result is "inf" or "nan" by the operation's own doing. Infinities that came in may go out (a mask's)."""
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
