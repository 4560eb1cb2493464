"""Formats given where they count: measure what each would cost, choose within a size, and verify the choice.

A part of the calibration text is held back. On the other part the loss of every weight in every format is estimated
(``calibration.sensitivity``), and the best choice within the bytes is taken (``quantizers.allocation``). Then recipe
and choice are compared on the text that was held back, by the KL divergence of the whole model with its values rounded
to nearest, times the share that a solver is expected to leave of it: GPTQ leaves less where inputs are alike, and a
choice for it counts on that. Where the choice does not lose less, the recipe is kept.

A target takes part with an ``AllocatingPlan``, and with the door of ``AllocatingDoors``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from qwen3_export import __version__
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.sensitivity.forecast import sensitivity_forecast
from qwen3_export.calibration.sensitivity.run import Sensitivity, measure_sensitivity
from qwen3_export.calibration.solving import Method
from qwen3_export.calibration.tokens import Calibration, evenly
from qwen3_export.errors import CalibrationError, OptionError, QuantizationError
from qwen3_export.files.atomic import write_text
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.files.recognise import is_allocation
from qwen3_export.files.shown import shown
from qwen3_export.graph import Graph, Weight
from qwen3_export.parallel import default_threads
from qwen3_export.parity.compare import compare_shipped
from qwen3_export.progress import Progress, percent
from qwen3_export.quantizers.allocation import Choice, allocate, total_loss
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.targets.options import AllocatingOptions
from qwen3_export.targets.target import Plan
from qwen3_export.units import human_size, parse_size

__all__ = [
    "AllocatingDoors",
    "AllocatingPlan",
    "Allocation",
    "Slot",
    "allocated",
    "check_request",
    "chosen_formats",
    "forecast_measuring",
    "largest",
    "mean_kld",
    "read_allocation",
    "record_of",
    "slot_of",
]

# Tokens on which formats are measured, and on which the choice is verified; in pieces of so many.
MEASURED_TOKENS, VERIFIED_TOKENS, PIECE = 8192, 8192, 256
# One window of so many is held back.
HELD_BACK = 4
# A choice is made again if metadata makes the file too long.
ATTEMPTS = 4

# What tuning records at most, and of each norm: its name and a digest.
TUNING_BYTES, BYTES_A_NORM = 512, 96

KIND, VERSION = "qwen3-export allocation", 1

Windows = Sequence[NDArray[np.int64]]
AnyPlan = TypeVar("AnyPlan", bound=Plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """What must have one format in the artifact: its weights, and the formats that it may have, with their bytes.

    ``planned`` is the name of the recipe's format. ``formats`` has it too, where the slot may have others.
    """

    name: str
    shape: tuple[int, ...]
    weights: tuple[str, ...]
    formats: Mapping[str, NumberFormat]
    num_bytes: Mapping[str, int]
    planned: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A choice of formats by the artifact's tensor names, and how it was made.

    Losses are in nats a position: ``expected`` and ``expected_by_recipe`` are the estimates, ``measured`` and
    ``measured_by_recipe`` were measured on text that the choice did not see, with values rounded to nearest; None where
    there was nothing to compare with. ``left`` and ``left_by_recipe`` are the shares of these that the method is
    expected to leave. ``keeps_recipe`` says that the recipe's formats won.
    """

    target: str
    recipe: str
    formats: Mapping[str, str]
    shapes: Mapping[str, Sequence[int]]
    dataset: str
    sha256: str
    num_tokens: int
    expected: float
    expected_by_recipe: float | None = None
    measured: float | None = None
    measured_by_recipe: float | None = None
    left: float = 1.0
    left_by_recipe: float = 1.0
    keeps_recipe: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The document that ``save_allocation`` writes."""
        return {"kind": KIND, "version": VERSION, "written_by": f"qwen3-export {__version__}", **asdict(self)}

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write it as JSON, for ``read_allocation``."""
        text = json.dumps(self.as_dict(), indent=1) + "\n"
        write_text(path, text, overwrite=overwrite, is_ours=is_allocation)


class AllocatingPlan(Plan, Protocol):
    """The plan of a target whose formats can be chosen."""

    @property
    def graph(self) -> Graph:
        """The graph with the values that would be stored."""
        ...

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What a format can be chosen for; a format that the user asked for stays, and has no slot."""
        ...

    @property
    def beside_bytes(self) -> int:
        """What the artifact holds beside ``num_bytes``, at most: a program, records of how values were chosen.

        The tokenizer of a folder does not count.
        """
        ...

    def with_allocation(self, allocation: Allocation) -> AllocatingPlan:
        """The plan in these formats."""
        ...


class AllocatingDoors(Protocol):
    """The function of a target whose formats can be chosen, besides ``target.Doors``."""

    def fitting(self, plan: Any, num_bytes: int) -> AllocatingPlan | None:
        """The plan with the largest recipe of at most so many bytes; None if there is none."""
        ...


def slot_of(weight: Weight, formats: Iterable[NumberFormat], *, planned: NumberFormat) -> Slot:
    """The slot of a weight that has its format to itself, in a target that adds nothing to a format's own bytes."""
    known = {found.name: found for found in (*formats, planned)}
    count = math.prod(weight.shape)
    return Slot(
        name=weight.name,
        shape=weight.shape,
        weights=(weight.name,),
        formats=known,
        num_bytes={name: round(count * found.bits_per_weight(weight.shape) / 8) for name, found in known.items()},
        planned=planned.name,
    )


def chosen_formats(slots: Sequence[Slot], allocation: Allocation) -> dict[str, Any]:
    """The chosen formats by weight name, to take the place of the recipe's."""
    return {weight: slot.formats[allocation.formats[slot.name]] for slot in slots for weight in slot.weights}


def record_of(allocation: Allocation | None) -> dict[str, Any] | None:
    """What artifacts and reports say of a choice, if there was one: all but the formats, which the artifact has."""
    if allocation is None:
        return None
    found = asdict(allocation)
    return {key: value for key, value in found.items() if key not in ("target", "recipe", "formats", "shapes")}


def largest(plans: Iterable[AnyPlan], num_bytes: int) -> AnyPlan | None:
    """The largest plan of at most so many bytes; None if there is none."""
    return max((plan for plan in plans if plan.num_bytes <= num_bytes), key=lambda plan: plan.num_bytes, default=None)


def read_allocation(path: Path, *, target: str, slots: Sequence[Slot]) -> Allocation:
    """Read a saved choice for another export of the same shapes: of the same model, or of a sibling.

    Raises OptionError for a file of another kind, of another model, or with a format that the target lacks.
    """
    document = read_json(path)
    fields = Fields(document, path)
    if fields.text("kind") != KIND or fields.integer("version") != VERSION:
        raise OptionError(f"`allocation` {path}: not a saved choice of formats; `save_allocation` writes one")
    if fields.text("target") != target:
        raise OptionError(f"`allocation` {path}: is for {shown(fields.text('target'))}, not for {target}")
    formats, shapes = fields.object("formats") or {}, fields.object("shapes") or {}
    known = {slot.name: slot for slot in slots}
    for name in (*sorted(known.keys() - formats.keys()), *sorted(formats.keys() - known.keys())):
        raise OptionError(f"`allocation` {path}: is another model's (only one of the two has {shown(name)})")
    for name, slot in known.items():
        if shapes.get(name) != list(slot.shape):
            raise OptionError(
                f"`allocation` {path}: is another model's ({name} is {shown(shapes.get(name))} there, and "
                f"{list(slot.shape)} here)"
            )
        if formats[name] not in slot.formats:
            raise OptionError(
                f"`allocation` {path}: {name} cannot have the format {shown(formats[name])}; use one of "
                f"{', '.join(slot.formats)}"
            )
    return Allocation(
        target=target,
        recipe=fields.text("recipe") or "unknown",
        formats=formats,
        shapes=shapes,
        dataset=fields.text("dataset") or "unknown",
        sha256=fields.text("sha256") or "unknown",
        num_tokens=fields.integer("num_tokens") or 0,
        expected=fields.number("expected") or 0.0,
        expected_by_recipe=fields.number("expected_by_recipe"),
        measured=fields.number("measured"),
        measured_by_recipe=fields.number("measured_by_recipe"),
        left=fields.number("left") or 1.0,
        left_by_recipe=fields.number("left_by_recipe") or 1.0,
        keeps_recipe=bool(fields.boolean("keeps_recipe")),
    )


def check_request(plan: AllocatingPlan) -> None:
    """Refuse a size that no choice of formats has, before anything is measured."""
    options = cast("AllocatingOptions", plan.options)
    if not options.chooses_formats:
        return
    slots = plan.slots
    if not slots:
        raise OptionError(f"{plan.recipe.name}: no tensor is left whose format could be chosen; leave `allocate` out")
    beside = 0 if options.size is None else plan.beside_bytes
    limit = _limit(plan, options, beside) + beside
    low, high = (_bytes_with(plan, slots, pick) + beside for pick in (min, max))
    what = (
        f"`size` {options.size}" if options.bits_per_weight is None else f"`bits_per_weight` {options.bits_per_weight}"
    )
    if limit < low:
        raise OptionError(f"{what}: the smallest formats take {human_size(low)} ({low:,} bytes); allow more")
    if limit > high and not options.allocate:
        raise OptionError(f"{what}: the largest formats take {human_size(high)} ({high:,} bytes); ask for less")


def forecast_measuring(plan: AllocatingPlan, text: Calibration, *, threads: int | None) -> Forecast:
    """What it takes to measure all formats on the text, and to compare the choice with the recipe."""
    measured_on, held_back = _parts(text.windows)
    return sensitivity_forecast(
        plan.model.graph,
        _candidates(plan.slots),
        num_tokens=sum(map(len, measured_on)),
        verified=sum(map(len, held_back)),
        threads=threads or default_threads(),
    )


def allocated(
    doors: AllocatingDoors,
    plan: AllocatingPlan,
    text: Calibration,
    *,
    target: str,
    method: Method,
    work_dir: Path,
    overwrite: bool,
    threads: int | None,
    progress: Progress,
) -> AllocatingPlan:
    """The plan with the formats that lose least within its size, or as it was where these do not lose less.

    ``method`` will choose the values: a solver leaves less of an error where inputs are alike, so formats count there
    less. What was measured is kept in ``work_dir`` until the export is written.
    """
    options = cast("AllocatingOptions", plan.options)
    limit = _limit(plan, options, 0 if options.size is None else plan.beside_bytes)
    base = plan if options.allocate else doors.fitting(plan, limit)
    start = base or plan
    slots = start.slots
    measured_on, held_back = _parts(text.windows)
    with progress.bar("measuring formats", 100) as advance:
        sensitivity = measure_sensitivity(
            plan.model.graph,
            _candidates(slots),
            measured_on,
            work_dir=work_dir,
            threads=threads,
            progress=percent(advance),
        )
    is_solved, planned = method == "gptq", {slot.name: slot.planned for slot in slots}

    def choice(budget: int) -> Allocation:
        chosen = allocate(_choices(slots, sensitivity, is_solved=is_solved), budget)
        return Allocation(
            target=target,
            recipe=start.recipe.name,
            formats={name: found.format for name, found in chosen.items()},
            shapes={slot.name: list(slot.shape) for slot in slots},
            expected=total_loss(chosen),
            expected_by_recipe=None if base is None else _loss(slots, sensitivity, planned, is_solved=is_solved),
            dataset=text.source,
            sha256=text.digest,
            num_tokens=sensitivity.num_tokens,
        )

    found, allocation = _within(start, slots, limit, choice)
    progress.say("comparing recipe and choice on text that the choice has not seen")
    measured = mean_kld(plan.model.graph, found.graph, held_back)
    by_recipe = None if base is None else mean_kld(plan.model.graph, base.graph, held_back)
    left, left_by_recipe = 1.0, 1.0
    if is_solved:
        left, left_by_recipe = (_left(slots, sensitivity, formats) for formats in (allocation.formats, planned))
    keeps = by_recipe is not None and not left * measured < left_by_recipe * by_recipe
    allocation = replace(
        allocation,
        measured=measured,
        measured_by_recipe=by_recipe,
        left=left,
        left_by_recipe=left_by_recipe,
        keeps_recipe=keeps,
    )
    if keeps:
        allocation = replace(allocation, formats=planned)
    progress.say(_told(allocation, start))
    if options.save_allocation is not None:
        allocation.save(options.save_allocation, overwrite=overwrite)
    return start.with_allocation(allocation)


def mean_kld(original: Graph, candidate: Graph, windows: Windows) -> float:
    """The mean KL divergence in nats of one graph from another over all positions of some windows, in fp32."""
    compared = compare_shipped(original, candidate, [window_T.tolist() for window_T in windows], run=None)
    assert compared.quantization.mean_kld is not None
    return compared.quantization.mean_kld


def _within(
    start: AllocatingPlan, slots: Sequence[Slot], limit: int, choice: Callable[[int], Allocation]
) -> tuple[AllocatingPlan, Allocation]:
    """The choice, and the plan with it, in no more than ``limit`` bytes; what is not in slots takes its share."""
    planned = sum(slot.num_bytes[slot.planned] for slot in slots)
    budget = limit - (start.num_bytes - planned)
    for _ in range(ATTEMPTS):
        allocation = choice(budget)
        found = start.with_allocation(allocation)
        if found.num_bytes <= limit:
            return found, allocation
        taken = sum(slot.num_bytes[allocation.formats[slot.name]] for slot in slots)
        budget = limit - (found.num_bytes - taken)
    raise QuantizationError(f"no choice of formats was found within {limit:,} bytes; allow more")


def _limit(plan: AllocatingPlan, options: AllocatingOptions, beside: int) -> int:
    """The most ``num_bytes`` of a plan, where ``beside`` come on top in a size that was asked for."""
    if options.size is not None:
        return parse_size(options.size, parameter="size") - beside
    if options.bits_per_weight is not None:
        parameters = plan.model.graph.num_parameters
        stored = plan.bits_per_weight * parameters / 8
        return int(plan.num_bytes - stored + options.bits_per_weight * parameters / 8)
    # A recipe's export has the record of a solver too, but none of tuning.
    norms = sum(weight.role.is_norm for weight in plan.graph)
    return plan.num_bytes - (TUNING_BYTES + BYTES_A_NORM * norms if options.tune else 0)


def _bytes_with(plan: Plan, slots: Sequence[Slot], pick: Callable[..., int]) -> int:
    """The artifact's bytes with each slot in its smallest or largest format."""
    return plan.num_bytes + sum(pick(slot.num_bytes.values()) - slot.num_bytes[slot.planned] for slot in slots)


def _candidates(slots: Sequence[Slot]) -> dict[str, tuple[NumberFormat, ...]]:
    """The formats that each weight may have."""
    return {weight: tuple(slot.formats.values()) for slot in slots for weight in slot.weights}


def _choices(slots: Sequence[Slot], sensitivity: Sensitivity, *, is_solved: bool) -> dict[str, list[Choice]]:
    return {
        slot.name: [
            Choice(
                format=name,
                num_bytes=slot.num_bytes[name],
                loss=sum(sensitivity.loss(weight, name, is_solved=is_solved) for weight in slot.weights),
            )
            for name in slot.formats
        ]
        for slot in slots
    }


def _loss(slots: Sequence[Slot], sensitivity: Sensitivity, formats: Mapping[str, str], *, is_solved: bool) -> float:
    """The expected loss of all slots in these formats."""
    return sum(
        sensitivity.loss(weight, formats[slot.name], is_solved=is_solved) for slot in slots for weight in slot.weights
    )


def _left(slots: Sequence[Slot], sensitivity: Sensitivity, formats: Mapping[str, str]) -> float:
    """The share of what rounding loses in these formats that a solver is expected to leave."""
    solved, rounded = (_loss(slots, sensitivity, formats, is_solved=is_solved) for is_solved in (True, False))
    return solved / rounded if rounded > 0 else 1.0


def _parts(windows: Windows) -> tuple[Windows, Windows]:
    """Pieces to measure on, and pieces that are held back; evenly spaced, some thousand tokens each."""
    held = windows[HELD_BACK - 1 :: HELD_BACK]
    if held:
        seen = [window_T for i, window_T in enumerate(windows) if i % HELD_BACK != HELD_BACK - 1]
    else:  # a short text: its last part is held back
        pieces = _pieces(windows)
        if len(pieces) < 2:
            raise CalibrationError(
                f"{sum(map(len, windows))} tokens are too few to choose formats and to verify the choice; more than "
                f"{PIECE} are needed: give more text, or more windows of it"
            )
        seen, held = pieces[: -max(1, len(pieces) // HELD_BACK)], pieces[-max(1, len(pieces) // HELD_BACK) :]
    return _spread(_pieces(seen), MEASURED_TOKENS), _spread(_pieces(held), VERIFIED_TOKENS)


def _pieces(windows: Windows) -> list[NDArray[np.int64]]:
    return [window_T[first : first + PIECE] for window_T in windows for first in range(0, len(window_T), PIECE)]


def _spread(pieces: Windows, tokens: int) -> Windows:
    """About so many tokens of pieces, evenly spaced."""
    return evenly(pieces, max(1, tokens // PIECE))


def _told(allocation: Allocation, start: Plan) -> str:
    assert allocation.measured is not None
    if allocation.measured_by_recipe is None:
        return f"the chosen formats lose {allocation.measured:.2e} nats; no recipe is small enough to compare with"
    both = f"{allocation.measured:.2e} nats instead of {allocation.measured_by_recipe:.2e} by {start.recipe.name}"
    both += ", rounded to nearest"
    if allocation.left < 1:
        both += f"; a solver is expected to leave {allocation.left:.0%} instead of {allocation.left_by_recipe:.0%}"
    if allocation.keeps_recipe:
        return f"note: the chosen formats lose {both}: the recipe's are kept"
    return f"the chosen formats lose {both}"
