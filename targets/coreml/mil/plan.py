"""Plan how to run a block: when each value can be dropped, and which states can be written in place.

A value is dropped after its last use, so memory holds only live values. Every layer stores its keys and values by
reading a state, updating a slice and writing the state back. The plan finds these slices, so that they can be written
in place: copying the whole cache in every layer would take longer than computing the layer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen3_export.targets.coreml.mil.program import Block, Operation
from qwen3_export.targets.coreml.mil.table import CONSTANTS

__all__ = ["Plan", "Step", "plan_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation; ``drops`` are names not needed after it, ``in_place`` is the state that it may overwrite."""

    operation: Operation
    drops: tuple[str, ...]
    blocks: tuple[Plan, ...]
    in_place: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The steps of a block, without its constants."""

    inputs: tuple[str, ...]
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]


def plan_of(block: Block) -> Plan:
    """Make the plan of a block."""
    operations = [operation for operation in block.operations if operation.kind not in CONSTANTS]
    uses = _uses(operations)
    drops = _drops(block, operations, uses)
    steps = [
        Step(
            operation=operation,
            drops=tuple(drops[place]),
            blocks=tuple(map(plan_of, operation.blocks)),
            in_place=_state_written(place, operations, uses, block.outputs),
        )
        for place, operation in enumerate(operations)
    ]
    return Plan(inputs=tuple(v.name for v in block.inputs), steps=tuple(steps), outputs=block.outputs)


def _uses(operations: Sequence[Operation]) -> dict[str, list[int]]:
    """The positions at which each name, states included, is used."""
    uses: dict[str, list[int]] = defaultdict(list)
    for place, operation in enumerate(operations):
        for name in set(_names(operation)):
            uses[name].append(place)
    return uses


def _names(operation: Operation) -> Iterator[str]:
    """All names that an operation and its inner blocks need."""
    for bindings in operation.inputs.values():
        yield from (binding for binding in bindings if isinstance(binding, str))
    for block in operation.blocks:
        yield from block.outputs
        for inner in block.operations:
            yield from _names(inner)


def _drops(block: Block, operations: Sequence[Operation], uses: dict[str, list[int]]) -> dict[int, list[str]]:
    """The position after which each value of this block is dropped: its last use, or its creation if it has none."""
    made = {variable.name: -1 for variable in block.inputs}
    made |= {v.name: place for place, operation in enumerate(operations) for v in operation.outputs}
    drops: dict[int, list[str]] = defaultdict(list)
    for name, place in made.items():
        if name not in block.outputs:
            drops[max([place, *uses.get(name, [])])].append(name)
    return drops


def _state_written(
    place: int, operations: Sequence[Operation], uses: dict[str, list[int]], outputs: tuple[str, ...]
) -> str | None:
    """The state that a ``slice_update`` may overwrite: it reads it, writes it back, and nothing uses it in between."""
    update = operations[place]
    if update.kind != "slice_update":
        return None
    source, target = update.inputs["x"][0], update.outputs[0].name
    before = next((o for o in operations[:place] if o.outputs and o.outputs[0].name == source), None)
    later = uses.get(target, [])
    if before is None or before.kind != "read_state" or len(later) != 1 or target in outputs:
        return None
    (state,), write = before.inputs["input"], operations[later[0]]
    if write.kind != "write_state" or write.inputs["input"][0] != state or not isinstance(state, str):
        return None
    between = [at for at in uses[state] if place < at < later[0]]
    last_use = uses[str(source)][-1] == place and source not in outputs
    return state if last_use and not between else None
