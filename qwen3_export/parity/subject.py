"""What a target gives to a check: an artifact that was read back, and the ways in which it can be run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from numpy import float32
from numpy.typing import NDArray

from qwen3_export.graph import Graph
from qwen3_export.parity.findings import Artifact, Exact, Observed, Shipped
from qwen3_export.parity.prompts import Prompt
from qwen3_export.parity.values import ValueCheck
from qwen3_export.quantizers.transforms import Fold

__all__ = ["Job", "RunForeign", "Say", "Subject"]

Say = Callable[[str], None]
# Texts, and whether the check is a full one
RunForeign = Callable[[Sequence[Prompt], bool], Shipped]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of an artifact: the values that it stores, the texts to run, and how thoroughly."""

    stored: Graph
    prompts: tuple[Prompt, ...]
    is_full: bool
    say: Say

    @property
    def texts(self) -> list[list[int]]:
        return [list(prompt.tokens) for prompt in self.prompts]


class Subject(Protocol):
    """An artifact that was read back.

    ``original`` is the checkpoint's graph as the target stores it, ``stored`` the same graph with the artifact's
    values: None where they cannot be read. ``problems`` are differences from the checkpoint that show without running;
    ``max_tokens`` is the longest text that the artifact takes.
    """

    @property
    def artifact(self) -> Artifact: ...

    @property
    def original(self) -> Graph: ...

    @property
    def stored(self) -> Graph | None: ...

    @property
    def problems(self) -> Sequence[str]: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def can_run(self) -> bool:
        """Whether the runtime is installed, and would survive the artifact."""
        ...

    @property
    def unrun(self) -> tuple[Exact, Shipped]:
        """What is reported where nothing ran."""
        ...

    def read_scales(self) -> Mapping[Fold, NDArray[float32]]:
        """The scales that were moved before rounding; CheckpointError where the record cannot be read."""
        ...

    def compare_values(self, stored: Graph, expected: Graph, *, is_full: bool) -> ValueCheck: ...

    def observe_runtime(self, job: Job) -> Observed:
        """Differences from the checkpoint that only the runtime shows, such as its tokenization."""
        ...

    def exact(self, job: Job) -> Exact:
        """Run the most exact form that the runtime has."""
        ...

    def shipped(self, job: Job) -> Shipped:
        """Run the artifact as it is; called after ``exact``."""
        ...

    @property
    def run_foreign(self) -> RunForeign | None:
        """Runs an artifact that another tool wrote, in names or layouts that are not known here; None where it is not.

        Such an artifact is compared with the original end to end.
        """
        ...
