"""What a target is: one record of facts, and a module with its doors, the functions that everything else calls.

The record is light, so that the command line can read all of them before anything is asked; the doors are imported on
use. What targets really differ in (how an exact form is made, what a runtime rounds, which files lie beside) stays in
their own folders: a door takes and gives the same things for every target, and shares no code by force.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from qwen3_export.targets.options import TargetOptions

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Formats, Method, Solution
    from qwen3_export.calibration.tokens import Calibration
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.checkpoint.tokenizer import Tokenizer
    from qwen3_export.generation.opened import Opened
    from qwen3_export.graph import Graph
    from qwen3_export.parity.subject import Subject
    from qwen3_export.progress import Progress
    from qwen3_export.targets.lint import Finding

__all__ = ["REPORT_FILES", "Doors", "Inspection", "Plan", "RecipeCost", "Target", "Written"]


# What checks and users leave in a folder that an export has written.
REPORT_FILES = frozenset({"report.json", "report.html", "report.xml"})


class Plan(Protocol):
    """One export, laid out before a byte is written; every target has a frozen dataclass of its own for it."""

    @property
    def model(self) -> Model:
        """What is exported, after exact changes that the target asks for."""
        ...

    @property
    def recipe(self) -> Any: ...  # with ``name`` and ``description``

    @property
    def out(self) -> Path:
        """The file or folder that will be written."""
        ...

    @property
    def report(self) -> Path:
        """Where the report of its check goes."""
        ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def bits_per_weight(self) -> float: ...

    @property
    def options(self) -> TargetOptions: ...

    @property
    def weight_formats(self) -> Formats:
        """The number format of each weight, by the weight's name."""
        ...

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know before it is written: memory that writing takes, a tensor stored twice."""
        ...

    def for_method(self, method: Method) -> Plan:
        """The plan for values chosen by this method; a few of llama.cpp's mixes depend on whether one is calibrated."""
        ...

    def rows(self) -> Iterator[str]:
        """What would be stored, a line each, for a dry run."""
        ...

    def written(self) -> Written:
        """What was written; asked once it has been."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What lies where after an export: a line for each part, and how it is run."""

    parts: tuple[str, ...]
    bits_per_weight: float
    run_it: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeCost:
    """What a recipe makes of a model; ``bytes_per_cached_value`` is that of its KV cache."""

    name: str
    description: str
    bits_per_weight: float
    num_bytes: int
    bytes_per_cached_value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is in an artifact: facts by name, a line for each tensor (made when asked), the chat template."""

    facts: Mapping[str, object]
    tensors: Callable[[], Iterable[str]]
    template: str | None


class Doors(Protocol):
    """The functions of a target's ``doors`` module. ``plan`` is the target's own kind of Plan."""

    def plan(self, model: Model, recipe: str, *, out: Path | None, options: Any, method: Method) -> Plan:
        """Choose every weight's format and lay out the artifact; what can be refused is refused here."""
        ...

    def measured(self, plan: Any, text: Calibration, *, progress: Progress) -> Plan:
        """The plan after what the target itself measures on the text; called where its options ``needs_text``."""
        ...

    def with_solution(self, plan: Any, solution: Solution) -> Plan:
        """The plan with the values that a solver has chosen, in the formats that it had."""
        ...

    def check_place(self, plan: Any, *, overwrite: bool) -> None:
        """Refuse (OutputError) what cannot or must not be written, before any work is done."""
        ...

    def write(self, plan: Any, *, overwrite: bool, threads: int | None, progress: Progress) -> Path:
        """Write the artifact; it appears under its name when it is whole."""
        ...

    def costs(self, model: Model) -> Iterator[RecipeCost]:
        """Every recipe that fits the model."""
        ...

    def before_check(self, path: Path, model: Model) -> None:
        """Write what a check leaves beside an artifact that was just made."""
        ...

    def open_subject(self, path: Path, graph: Graph, tokenizer: Tokenizer, *, threads: int | None) -> Subject:
        """Read an artifact back, for a check."""
        ...

    def read(self, path: Path, graph: Graph) -> Graph:
        """The checkpoint's graph with the artifact's values; nothing is decoded before it is asked for."""
        ...

    def lint(self, path: Path, model: Model) -> tuple[tuple[str, ...], Iterable[Finding]]:
        """The consumers of this artifact, and what each of them would stumble over."""
        ...

    def generate(self, path: Path, model: Model | None, *, threads: int | None) -> AbstractContextManager[Opened]:
        """Open an artifact for generation; ``model`` lends the tokenizer and template that it lacks."""
        ...

    def inspect(self, path: Path) -> Inspection:
        """What is in an artifact, without running it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One target.

    ``consumers`` are the programs that load its artifacts, as their makers spell them; ``extra`` is what
    ``pip install`` calls the packages that it needs; ``package`` holds ``doors`` and ``recipes``; ``owns`` says whether
    a path is one of its artifacts, by names alone.
    """

    name: str
    title: str
    summary: str
    extra: str
    consumers: tuple[str, ...]
    default_recipe: str
    options: type[TargetOptions]
    package: str
    owns: Callable[[Path], bool]
    examples: tuple[str, ...]
    suffixes: tuple[str, ...] = field(default=())

    @property
    def doors(self) -> Doors:
        return cast("Doors", import_module(f"{self.package}.doors"))

    @property
    def recipes(self) -> Mapping[str, Any]:
        """The recipes by name, each with a ``description``."""
        found: Mapping[str, Any] = import_module(f"{self.package}.recipes").RECIPES
        return found
