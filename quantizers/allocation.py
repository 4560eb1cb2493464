"""Give number formats where they count: one for each slot, to lose least in no more than so many bytes.

A slot is what must have one format: a weight, or all weights of a tensor in the artifact. Each has some choices, with
their bytes and with what the model is expected to lose by them. The losses of slots add up, so the best choice is a
knapsack: from the smallest formats on, the step that saves most loss a byte is taken, as long as it fits. Steps may go
past a format that is not worth its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qwen3_export.errors import QuantizationError

__all__ = ["Choice", "allocate", "total_bytes", "total_loss"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One format for a slot: its name, its bytes, and the expected loss in nats."""

    format: str
    num_bytes: int
    loss: float


def allocate(slots: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """A choice for each slot, within ``budget`` bytes together; equal inputs give equal results.

    Raises QuantizationError where even the smallest choices take more.
    """
    chosen = {slot: min(choices, key=lambda choice: (choice.num_bytes, choice.loss)) for slot, choices in slots.items()}
    left = budget - total_bytes(chosen)
    if left < 0:
        raise QuantizationError(
            f"the smallest formats take {total_bytes(chosen):,} bytes, and {budget:,} are allowed; allow more"
        )
    while (step := _best_step(slots, chosen, left)) is not None:
        slot, choice = step
        left -= choice.num_bytes - chosen[slot].num_bytes
        chosen[slot] = choice
    return chosen


def total_bytes(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.num_bytes for choice in chosen.values())


def total_loss(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.loss for choice in chosen.values())


def _best_step(
    slots: Mapping[str, Sequence[Choice]], chosen: Mapping[str, Choice], left: int
) -> tuple[str, Choice] | None:
    """The step that saves most for each byte that it adds, among those that fit; None if nothing does."""
    best: tuple[float, str, Choice] | None = None
    for slot, choices in slots.items():
        now = chosen[slot]
        for choice in choices:
            added, saved = choice.num_bytes - now.num_bytes, now.loss - choice.loss
            if saved <= 0 or added > left:
                continue
            worth = saved / added if added > 0 else float("inf")
            if best is None or worth > best[0]:
                best = (worth, slot, choice)
    return None if best is None else best[1:]
