"""The parity report: what was compared, how far apart it was, and the verdict.

One frozen record, written as JSON for machines; ``summary`` and ``html`` show it to people.
"""

from __future__ import annotations

import json
import math
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from qwen3_export.errors import OutputError
from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import is_report
from qwen3_export.parity.curves import CurvePoint
from qwen3_export.parity.metrics import NOT_RUN, Comparison, Status
from qwen3_export.parity.values import WeightError

__all__ = [
    "NUMBERS",
    "Decode",
    "FirstDivergence",
    "Gate",
    "Gates",
    "Report",
    "Runtime",
    "Sampling",
    "load_report",
    "number_text",
    "package_versions",
    "peak_memory_bytes",
    "save_report",
]

# The four numbers, and what each says.
NUMBERS: Mapping[str, str] = {
    "conversion": "the runtime at its most exact against the stored values: wiring, packing, metadata",
    "shipped": "the runtime as shipped against the stored values: what its arithmetic costs",
    "quantization": "the stored values against the original: what the recipe costs",
    "end_to_end": "the artifact as shipped against the original: what the user gets",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """Bounds that the user sets on ``end_to_end``; None where anything goes."""

    max_mean_kld: float | None = None
    max_p99_kld: float | None = None
    min_top1: float | None = None

    def each(self, numbers: Comparison) -> list[Gate]:
        """Every bound that is set, with what was measured."""
        found = (
            Gate("max_mean_kld", "mean KLD", numbers.mean_kld, self.max_mean_kld, is_most=True),
            Gate("max_p99_kld", "p99 KLD", numbers.p99_kld, self.max_p99_kld, is_most=True),
            Gate("min_top1", "top-1 agreement", numbers.same_top1, self.min_top1, is_most=False),
        )
        return [gate for gate in found if gate.bound is not None]

    def failures(self, numbers: Comparison) -> list[str]:
        """One sentence for each bound that was measured and is not kept."""
        return [gate.failure for gate in self.each(numbers) if gate.failure is not None]


@dataclass(frozen=True, slots=True)
class Gate:
    """One bound, and what was measured (None: nothing was); ``is_most`` tells a maximum from a minimum."""

    name: str
    quantity: str
    value: float | None
    bound: float | None
    is_most: bool

    @property
    def failure(self) -> str | None:
        """One sentence if the bound is not kept."""
        if self.value is None or self.bound is None:
            return None
        sign = 1 if self.is_most else -1
        if sign * self.value <= sign * self.bound:
            return None
        return f"{self.quantity} {self.value:.6g} is {'above' if self.is_most else 'below'} the bound {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Token by token and in chunks through the KV cache, against one prefill: the largest logit difference.

    First in the runtime's exact form, then as shipped, where kernels differ between batch sizes. ``cache_relative`` is
    the largest relative difference of cached keys and values from the reference's, where a runtime shows them.
    """

    max_abs_vs_prefill: float | None = None
    bound: float | None = None
    shipped_max_abs_vs_prefill: float | None = None
    shipped_bound: float | None = None
    cache_relative: float | None = None
    cache_bound: float | None = None
    status: Status = "not_run"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstDivergence:
    """Where hidden states part first: ``site`` is a place of the reference, ``relative`` an RMS difference.

    ``cause`` is the known mistake that gives just what was found there, if there is one.
    """

    layer: int | None
    site: str
    relative: float
    cause: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """The runtime that executed the artifact; version None where it is not installed."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What a check looked at."""

    mode: str  # "quick" or "full"
    prompts: tuple[str, ...]
    exact_form: str  # which layers and vocabulary the exact form held
    weights: int
    rows: int
    rows_in_all: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a check found.  ``metadata`` and ``values`` list differences from the checkpoint, one sentence
    each, ``notes`` what the runtime cannot do as the checkpoint does; ``gates`` lists user bounds that are not kept;
    ``floor`` is the noise floor behind ``shipped``'s bound; ``calibration`` names a solver's text and each tensor's
    error, ``allocation`` how formats were chosen, ``tuning`` how norms and scales were tuned, as far as the artifact
    records them.  ``bounds`` are the user's;
    ``curves`` are numbers by name over the positions of the texts, ``weight_errors`` how far off each matrix is;
    ``command`` repeats the check.
    """

    artifact: str
    target: str
    recipe: str
    method: str
    model: str
    size_bytes: int
    bits_per_weight: float
    conversion: Comparison = NOT_RUN
    shipped: Comparison = NOT_RUN
    quantization: Comparison = NOT_RUN
    end_to_end: Comparison = NOT_RUN
    floor: Comparison = NOT_RUN
    decode: Decode = field(default_factory=Decode)
    calibration: Mapping[str, Any] | None = None
    allocation: Mapping[str, Any] | None = None
    tuning: Mapping[str, Any] | None = None
    metadata: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    values: tuple[str, ...] = ()
    gates: tuple[str, ...] = ()
    first_divergence: FirstDivergence | None = None
    positions: int = 0
    sampled: Sampling | None = None
    runtime: Runtime
    versions: Mapping[str, str]
    seconds: float
    peak_memory_bytes: int
    command: str | None = None
    bounds: Gates = field(default_factory=Gates)
    curves: Mapping[str, tuple[CurvePoint, ...]] = field(default_factory=dict)
    weight_errors: tuple[WeightError, ...] = ()

    @property
    def verdict(self) -> Status:
        """``fail`` if anything is out of bounds, else ``not_run`` if anything is missing, else ``pass``."""
        statuses = [getattr(self, name).status for name in NUMBERS] + [self.decode.status]
        if "fail" in statuses or self.metadata or self.values or self.gates:
            return "fail"
        return "not_run" if "not_run" in statuses else "pass"

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is not ``pass``, one sentence each, the most telling first."""
        reasons = [*self.metadata, *self.values, *self.gates]
        for name in NUMBERS:
            numbers: Comparison = getattr(self, name)
            if numbers.status == "fail" and not (name == "end_to_end" and self.gates):
                reasons.append(f"{name}: mean KLD {number_text(numbers.mean_kld)} exceeds {number_text(numbers.bound)}")
        if self.first_divergence is not None:
            where = self.first_divergence
            layer = "" if where.layer is None else f"layer {where.layer} "
            cause = "" if where.cause is None else f": {where.cause}"
            reasons.append(f"hidden states part at {layer}{where.site} (relative {where.relative:.2g}){cause}")
        if self.decode.status == "fail":
            reasons.append("decode: chunks through the KV cache differ from one prefill")
        if self.runtime.version is None:
            reasons.append(f"{self.runtime.name} is not installed, so nothing was run")
        elif self.conversion.status == "not_run" and self.end_to_end.status != "not_run":
            reasons.append("the artifact's weights cannot be read, so that only what it does end to end is known")
        return reasons

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        document = {"verdict": self.verdict, **asdict(self)}
        order = ("artifact", "target", "recipe", "method", "model", "verdict")
        return {key: _finite(value) for key, value in ({key: document[key] for key in order} | document).items()}

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the report as JSON, as an HTML page or as JUnit XML, by the ending of ``path``.

        A report that lies there is replaced only with ``overwrite``.
        """
        from qwen3_export.parity.html import save_html
        from qwen3_export.parity.junit import save_junit

        path = Path(path)
        if path.suffix == ".html":
            save_html(self, path, overwrite=overwrite)
        elif path.suffix == ".xml":
            save_junit([self], path, overwrite=overwrite)
        elif path.suffix == ".json":
            save_report(self, path, overwrite=overwrite)
        else:
            raise OutputError(f"{path}: a report is saved as .json, .html or .xml; choose one of these endings")


def save_report(report: Report, path: Path, *, overwrite: bool = True) -> None:
    """Write a report as JSON; with ``overwrite`` it replaces an earlier report, and no other file (OutputError)."""
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_text(path, text, overwrite=overwrite, is_ours=is_report)


def load_report(path: Path) -> dict[str, Any]:
    """The JSON document of a saved report."""
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_bytes() -> int:
    """The largest resident size of this process so far (macOS counts bytes, Linux KiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) if sys.platform == "darwin" else int(peak) * 1024


def number_text(value: float | None) -> str:
    """Three digits; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else "not finite"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
