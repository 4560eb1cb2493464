"""Doors that most targets share: each names the ones that it takes from here."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from qwen3_export.calibration.tokens import Calibration
from qwen3_export.checkpoint.model import Model
from qwen3_export.progress import Progress
from qwen3_export.targets.target import Plan, RecipeCost

__all__ = ["before_check", "cost_of", "measured"]

AnyPlan = TypeVar("AnyPlan", bound=Plan)


def measured(plan: AnyPlan, text: Calibration, *, progress: Progress) -> AnyPlan:  # noqa: ARG001 (nothing is measured)
    """The plan as it is: the target measures nothing by itself."""
    return plan


def before_check(path: Path, model: Model) -> None:
    """Nothing is left beside the artifact."""


def cost_of(plan: Plan, *, bytes_per_cached_value: int) -> RecipeCost:
    """What a plan says of its recipe."""
    return RecipeCost(
        name=plan.recipe.name,
        description=plan.recipe.description,
        bits_per_weight=plan.bits_per_weight,
        num_bytes=plan.num_bytes,
        bytes_per_cached_value=bytes_per_cached_value,
    )
