"""Give number formats where they count: one for each slot, to lose least in no more than so many bytes.

A slot is what must have one format: a weight, or all weights of a tensor in the artifact. Each has some choices, with
their bytes and with what the model is expected to lose by them. The losses of slots add up, so the best choice is a
knapsack. It is filled by dynamic programming over the bytes, in units of a small part of them: slots may be so large
(an embedding) that their best format pays only if many others go down. What the units left over is spent step by step,
each time on the step that saves most loss a byte. Where that alone does better, it is taken.

Shapes: B units of bytes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qwen3_export.errors import QuantizationError

__all__ = ["Choice", "allocate", "total_bytes", "total_loss"]

# So many units make up what the smallest formats leave of the bytes.
UNITS = 20_000


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
    smallest = {slot: min(choices, key=lambda found: (found.num_bytes, found.loss)) for slot, choices in slots.items()}
    if total_bytes(smallest) > budget:
        raise QuantizationError(
            f"the smallest formats take {total_bytes(smallest):,} bytes, and {budget:,} are allowed; allow more"
        )
    found = (_filled(slots, start, budget) for start in (_in_units(slots, smallest, budget), smallest))
    return min(found, key=lambda chosen: (total_loss(chosen), total_bytes(chosen)))


def total_bytes(chosen: Mapping[str, Choice]) -> int:
    return sum(choice.num_bytes for choice in chosen.values())


def total_loss(chosen: Mapping[str, Choice]) -> float:
    return sum(choice.loss for choice in chosen.values())


def _in_units(slots: Mapping[str, Sequence[Choice]], smallest: Mapping[str, Choice], budget: int) -> dict[str, Choice]:
    """The best choice where bytes beyond the smallest formats are counted in whole units."""
    spare = budget - total_bytes(smallest)
    unit = max(1, spare // UNITS)
    count = spare // unit + 1
    least_B, taken = np.zeros(count), list[tuple[str, list[tuple[int, Choice]], np.ndarray]]()
    for slot, choices in slots.items():
        sized = [(-(-(choice.num_bytes - smallest[slot].num_bytes) // unit), choice) for choice in choices]
        sized = [(units, choice) for units, choice in sized if units < count]
        loss_B, which_B = np.full(count, np.inf), np.zeros(count, np.int32)
        for i, (units, choice) in enumerate(sized):
            with_it_B = least_B[: count - units] + choice.loss
            is_better_B = with_it_B < loss_B[units:]
            loss_B[units:][is_better_B] = with_it_B[is_better_B]
            which_B[units:][is_better_B] = i
        least_B = loss_B
        taken.append((slot, sized, which_B))
    left, chosen = count - 1, dict[str, Choice]()
    for slot, sized, which_B in reversed(taken):
        units, chosen[slot] = sized[which_B[left]]
        left -= units
    return {slot: chosen[slot] for slot in slots}


def _filled(slots: Mapping[str, Sequence[Choice]], start: Mapping[str, Choice], budget: int) -> dict[str, Choice]:
    """The choice with what is left of the budget spent, step by step."""
    chosen, left = dict(start), budget - total_bytes(start)
    while (step := _best_step(slots, chosen, left)) is not None:
        slot, choice = step
        left -= choice.num_bytes - chosen[slot].num_bytes
        chosen[slot] = choice
    return chosen


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
