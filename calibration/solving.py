"""The solvers by name: how the stored values of an export are chosen, for every target.

``rtn`` rounds to nearest under searched scales, and needs no text. ``gptq`` chooses the values of each layer so that
its outputs on a calibration text change least, given the errors of the layers before it. ``awq`` moves scales between
weights so that rounding costs least for the activations on a text, and then rounds to nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypedDict, get_args

from numpy import float32
from numpy.typing import NDArray

from qwen3_export.calibration.awq.forecast import awq_forecast
from qwen3_export.calibration.awq.run import awq_graph
from qwen3_export.calibration.forecast import Forecast
from qwen3_export.calibration.gptq.forecast import gptq_forecast
from qwen3_export.calibration.gptq.sequential import SequentialSettings, gptq_graph
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.calibration.tuning.run import tune_graph
from qwen3_export.calibration.tuning.text import TuningText
from qwen3_export.errors import ExportError
from qwen3_export.files.unfinished import remove_runs
from qwen3_export.graph import Graph
from qwen3_export.parallel import default_threads
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.transforms import Fold
from qwen3_export.quantizers.weights.digests import digest_name, value_digests

__all__ = ["Formats", "Method", "Solution", "Solver", "forecast_solving", "solve", "tune"]

Solver = Literal["gptq", "awq"]
Method = Literal["rtn", "gptq", "awq"]

Formats = Mapping[str, NumberFormat]
"""The number format of each weight, by the weight's name."""

Progress = Callable[[int, int], None]

# Tokens on which a solver measures how errors of different outputs count together.
OUTPUT_TOKENS = 8192


class _Origin(TypedDict):
    """The fields of a solution that name its calibration text."""

    dataset: str
    sha256: str
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The graph with the values that a solver chose, and the text that it used.

    ``errors`` are by weight name: the error of the weight's output, relative to the output. ``scales`` were moved
    before rounding; ``digests`` are of values that are not the nearest ones; ``tuning`` is the record of how norms and
    scales were tuned, where they were; ``notes`` are sentences for the user.
    """

    graph: Graph
    method: str
    dataset: str
    sha256: str
    num_tokens: int
    errors: Mapping[str, float]
    scales: Mapping[Fold, NDArray[float32]] = field(default_factory=lambda: MappingProxyType({}))
    digests: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    tuning: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def solve(
    method: str,
    graph: Graph,
    formats: Formats,
    calibration: Calibration,
    *,
    work_dir: Path,
    ties_outputs: bool = False,
    resume: bool = True,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """Choose the values of every weight in the format that ``formats`` gives for its name.

    With ``ties_outputs`` gptq first measures how errors of different outputs count together; awq has no use for that.
    Results are kept in ``work_dir`` as they come, and the solution reads some of them from there, so the folder must
    stay until the export is written. With ``resume`` an interrupted run is continued. Raises ExportError for an unknown
    ``method``.
    """
    _check_method(method)
    if not resume:
        remove_runs(work_dir, [method])
    windows = calibration.windows
    origin = _Origin(dataset=calibration.source, sha256=calibration.digest, num_tokens=calibration.num_tokens)
    if method == "awq":
        found = awq_graph(graph, formats, windows, work_dir=work_dir, progress=progress)
        return Solution(graph=found.graph, method=method, errors=found.errors, scales=found.scales, **origin)
    settings = _settings(ties_outputs=ties_outputs)
    solved, report = gptq_graph(
        graph, formats, windows, work_dir=work_dir, settings=settings, threads=threads, progress=progress
    )
    errors = {weight.name: weight.error for weight in report.weights}
    digests = value_digests(solved, errors)
    notes = tuple(report.notes)
    return Solution(graph=solved, method=method, errors=errors, digests=digests, notes=notes, **origin)


def tune(
    graph: Graph,
    solution: Solution,
    text: TuningText,
    *,
    work_dir: Path,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Solution:
    """The solution with norms, and the scales of what was solved, tuned to answer as ``graph`` does.

    Where that does not lose less on what the text holds back, the values stay, and ``tuning`` says so. An interrupted
    run is continued from ``work_dir``.
    """
    solved = {name: solution.digests[digest_name(solution.graph.weights[name].role)] for name in solution.errors}
    tuned = tune_graph(graph, solution.graph, solved, text, work_dir=work_dir, threads=threads, progress=progress)
    digests = solution.digests
    if not tuned.keeps_solved:
        norms = [weight.name for weight in graph if weight.role.is_norm]
        digests = value_digests(tuned.graph, [*solved, *norms])
    return replace(solution, graph=tuned.graph, digests=digests, tuning=tuned.record())


def forecast_solving(
    method: str,
    graph: Graph,
    formats: Formats,
    calibration: Calibration,
    *,
    ties_outputs: bool = False,
    threads: int | None = None,
) -> Forecast:
    """Estimate the time, memory and disk that ``solve`` will take."""
    _check_method(method)
    if method == "awq":
        return awq_forecast(graph, formats, calibration.windows)
    return gptq_forecast(
        graph,
        formats,
        calibration.windows,
        settings=_settings(ties_outputs=ties_outputs),
        threads=threads or default_threads(),
    )


def _settings(*, ties_outputs: bool) -> SequentialSettings:
    return SequentialSettings(output_tokens=OUTPUT_TOKENS if ties_outputs else 0)


def _check_method(method: str) -> None:
    if method not in get_args(Solver):
        raise ExportError(f"{method}: no such solver; there is {' and '.join(get_args(Solver))}")
