"""Choices of formats that are made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar, cast

from qwen3_export.targets.allocating import AllocatingPlan, Allocation
from qwen3_export.targets.registry import planned_target

__all__ = ["in_formats"]

AnyPlan = TypeVar("AnyPlan", bound=AllocatingPlan)


def in_formats(plan: AnyPlan, formats: Mapping[str, str]) -> AnyPlan:
    """The plan with each slot in the format that is given for its name."""
    allocation = Allocation(
        target=planned_target(plan).name,
        recipe=plan.recipe.name,
        formats=formats,
        shapes={slot.name: list(slot.shape) for slot in plan.slots},
        dataset="none",
        sha256="0" * 64,
        num_tokens=0,
        expected=0.0,
    )
    return cast("AnyPlan", plan.with_allocation(allocation))
