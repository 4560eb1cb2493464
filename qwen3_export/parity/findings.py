"""Collect what a check has found, and make the report of it; the same for every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen3_export.parity.compare import ShippedNumbers
from qwen3_export.parity.judgement import SHIPPED_FLOORS, judge_decode, judge_end_to_end, shipped_bound
from qwen3_export.parity.metrics import NOT_RUN, Comparison
from qwen3_export.parity.prompts import Prompt
from qwen3_export.parity.report import (
    Decode,
    FirstDivergence,
    Gates,
    Report,
    Runtime,
    Sampling,
    package_versions,
    peak_memory_bytes,
)
from qwen3_export.parity.values import ValueCheck

__all__ = ["Artifact", "Exact", "Findings", "Observed", "Shipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """What was checked, as it describes itself; ``runtime`` is what ran it, ``packages`` whose versions matter."""

    name: str
    target: str
    recipe: str
    method: str
    model: str
    size_bytes: int
    bits_per_weight: float
    runtime: Runtime
    packages: tuple[str, ...]
    calibration: Mapping[str, Any] | None = None
    allocation: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What only the runtime shows, such as its tokenization: faults, and notes on what it cannot do otherwise."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """What the runtime's exact form showed; ``description`` says which form that was."""

    description: str
    conversion: Comparison = NOT_RUN
    decode: float | None = None
    cache: float | None = None
    divergence: FirstDivergence | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What the artifact itself showed; ``floors`` of the modelled noise are in bounds.

    ``problems`` are findings other than numbers, such as an overflow. ``judged_decode`` is for a runtime whose
    decoding has bounds of its own; otherwise ``decode``, the largest difference of a logit, is judged.
    """

    numbers: ShippedNumbers
    decode: float | None = None
    floors: float = SHIPPED_FLOORS
    problems: tuple[str, ...] = ()
    judged_decode: Decode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Everything a check found; ``problems`` are differences of metadata, ``notes`` what no artifact of the kind
    could do otherwise, ``values`` None where none were read.

    ``decode`` None is judged from the two forms' differences.
    """

    exact: Exact
    shipped: Shipped
    problems: Sequence[str] = ()
    notes: Sequence[str] = ()
    values: ValueCheck | None = None
    prompts: Sequence[Prompt] = ()
    is_full: bool = False
    decode: Decode | None = None

    def report(self, artifact: Artifact, *, gates: Gates | None, seconds: float) -> Report:
        """The report, judged; ``gates`` are the user's own bounds."""
        numbers, floors = self.shipped.numbers, self.shipped.floors
        end_to_end, failures = judge_end_to_end(numbers, gates or Gates())
        exact = self.exact
        decode = judge_decode(exact.decode, self.shipped.decode, numbers, floors=floors, cache=exact.cache)
        return Report(
            artifact=artifact.name,
            target=artifact.target,
            recipe=artifact.recipe,
            method=artifact.method,
            model=artifact.model,
            size_bytes=artifact.size_bytes,
            bits_per_weight=artifact.bits_per_weight,
            conversion=self.exact.conversion,
            shipped=numbers.shipped.judged(shipped_bound(numbers.floor, floors=floors)),
            quantization=numbers.quantization.judged(None),
            end_to_end=end_to_end,
            floor=replace(numbers.floor.judged(None), bound=None),
            decode=self.decode or decode,
            calibration=artifact.calibration,
            allocation=artifact.allocation,
            tuning=artifact.tuning,
            metadata=tuple(self.problems),
            notes=(*self.notes, *(() if self.values is None else self.values.notes)),
            values=() if self.values is None else self.values.differences,
            gates=tuple(failures),
            first_divergence=self.exact.divergence,
            positions=sum(len(prompt.tokens) for prompt in self.prompts),
            sampled=self._sampling(),
            runtime=artifact.runtime,
            versions=package_versions(artifact.packages),
            seconds=seconds,
            peak_memory_bytes=peak_memory_bytes(),
            bounds=gates or Gates(),
            curves=numbers.curves,
            weight_errors=() if self.values is None else self.values.errors,
        )

    def _sampling(self) -> Sampling | None:
        if self.values is None:
            return None
        return Sampling(
            mode="full" if self.is_full else "quick",
            prompts=tuple(prompt.name for prompt in self.prompts),
            exact_form=self.exact.description,
            weights=self.values.weights,
            rows=self.values.rows,
            rows_in_all=self.values.rows_in_all,
        )
