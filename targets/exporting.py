"""One export, the same for every target: measure, solve, write, and keep unfinished work until it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import cast, get_args

from qwen3_export.calibration.forecast import Forecast, check_disk
from qwen3_export.calibration.solving import Method, Solution, forecast_solving, solve, tune
from qwen3_export.calibration.tokens import Calibration, read_calibration
from qwen3_export.calibration.tuning.forecast import tuning_forecast
from qwen3_export.calibration.tuning.text import TuningText, tuning_text
from qwen3_export.errors import OptionError
from qwen3_export.files.atomic import check_output
from qwen3_export.files.recognise import is_allocation
from qwen3_export.files.unfinished import remove_runs
from qwen3_export.parallel import default_threads, use_threads
from qwen3_export.parity.summary import tuning_lines
from qwen3_export.progress import SILENT, Progress, percent
from qwen3_export.targets.allocating import AllocatingDoors, AllocatingPlan, allocated, forecast_measuring
from qwen3_export.targets.options import AllocatingOptions, TargetOptions
from qwen3_export.targets.registry import planned_target
from qwen3_export.targets.target import Doors, Plan

__all__ = ["check_method", "check_text", "check_tune", "export", "forecast", "needs_text"]

ROUNDING: Method = "rtn"


def export(
    doors: Doors,
    plan: Plan,
    *,
    method: Method = ROUNDING,
    text: Calibration | None = None,
    overwrite: bool = False,
    work_dir: Path | None = None,
    resume: bool = True,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Choose the stored values, and write what was planned; returns the path of the artifact.

    ``text`` is what a calibrated method, or a target's own measurement, looks at: by default the sample that ships with
    the package. Solved values are kept in ``work_dir`` (beside the output by default) while the run lasts, and an
    interrupted run goes on from there with ``resume``. Raises ExportError for what cannot be done, before anything is
    written where that can be known.
    """
    check_method(method)
    check_tune(method, plan.options)
    plan = plan.for_method(method)
    check_text(text, method, plan.options)
    doors.check_place(plan, overwrite=overwrite)
    if text is None and needs_text(method, plan.options):
        text = read_calibration(None, plan.model.tokenizer)
    if text is not None and plan.options.needs_text:
        use_threads(threads)
        plan = doors.measured(plan, text, progress=progress)
    folder = work_dir or plan.out.with_name(f"{plan.out.name}.work")
    if text is not None:
        plan = _allocated(
            plan, method, text, folder, overwrite=overwrite, resume=resume, threads=threads, progress=progress
        )
    with _solved(doors, plan, method, text, folder, resume=resume, threads=threads, progress=progress) as ready:
        written = doors.write(ready, overwrite=overwrite, threads=threads, progress=progress)
    if work_dir is None and needs_text(method, plan.options):
        remove_runs(folder)
    return written


def forecast(plan: Plan, method: Method, text: Calibration, *, threads: int | None = None) -> Forecast:
    """What measuring, solving and tuning will take in time, memory and disk, as far as the export does them."""
    use_threads(threads)
    parts = []
    if _chooses_formats(plan):
        parts.append(forecast_measuring(cast("AllocatingPlan", plan), text, threads=threads))
    if method != ROUNDING:
        parts.append(_forecast_values(plan, method, text, _pieces(plan, text), threads=threads))
    return reduce(Forecast.then, parts, Forecast(seconds=0.0, memory_bytes=0, disk_bytes=0))


def _forecast_values(
    plan: Plan, method: Method, text: Calibration, pieces: TuningText | None, *, threads: int | None
) -> Forecast:
    """The estimate for a solver, and for tuning on ``pieces`` after it."""
    graph, formats = plan.model.graph, plan.weight_formats
    solving = forecast_solving(method, graph, formats, text, ties_outputs=_ties_outputs(plan), threads=threads)
    if pieces is None:
        return solving
    return solving.then(tuning_forecast(graph, formats, pieces, threads=threads or default_threads()))


def _pieces(plan: Plan, text: Calibration) -> TuningText | None:
    """What is tuned on; None where nothing is."""
    return tuning_text(text, plan.model.tokenizer) if plan.options.tune else None


def _chooses_formats(plan: Plan) -> bool:
    return isinstance(plan.options, AllocatingOptions) and plan.options.chooses_formats


def _ties_outputs(plan: Plan) -> bool:
    """Whether gptq measures how errors of different outputs count together: where formats are measured too."""
    return isinstance(plan.options, AllocatingOptions) and plan.options.gives_formats


def check_method(method: str) -> None:
    """Refuse what is no method."""
    if method not in get_args(Method):
        raise OptionError(f"`method` {method}: no such method; there is {', '.join(get_args(Method))}")


def check_tune(method: str, options: TargetOptions) -> None:
    """Refuse to tune what no solver has chosen."""
    if options.tune and method != "gptq":
        raise OptionError("`tune` goes on from codes that a solver has chosen: it is for `method` gptq")


def needs_text(method: Method, options: TargetOptions) -> bool:
    """Whether an export looks at a calibration text."""
    return method != ROUNDING or options.needs_text


def check_text(text: object | None, method: Method, options: TargetOptions) -> None:
    """Refuse a text (or its path) that nothing would look at."""
    if text is not None and not needs_text(method, options):
        raise OptionError("`text` is for `method` gptq and awq; rtn uses no text")


def _allocated(
    plan: Plan,
    method: Method,
    text: Calibration,
    folder: Path,
    *,
    overwrite: bool,
    resume: bool,
    threads: int | None,
    progress: Progress,
) -> Plan:
    """The plan in the formats that are chosen on the text, where the options ask for that."""
    if not _chooses_formats(plan):
        return plan
    target, chosen = planned_target(plan), cast("AllocatingPlan", plan)
    kept = cast("AllocatingOptions", plan.options).save_allocation
    use_threads(threads)
    if kept is not None:
        check_output(kept, overwrite=overwrite, is_ours=is_allocation)
    if not resume:
        remove_runs(folder, ["sensitivity"])
    progress.say(f"forecast of measuring formats: {forecast_measuring(chosen, text, threads=threads)}")
    return allocated(
        cast("AllocatingDoors", target.doors),
        chosen,
        text,
        target=target.name,
        method=method,
        work_dir=folder,
        overwrite=overwrite,
        threads=threads,
        progress=progress,
    )


@contextmanager
def _solved(
    doors: Doors,
    plan: Plan,
    method: Method,
    text: Calibration | None,
    folder: Path,
    *,
    resume: bool,
    threads: int | None,
    progress: Progress,
) -> Iterator[Plan]:
    """The plan with solved values (rtn: as it is). Unfinished work is in ``folder``, which must stay for the block."""
    if method == ROUNDING or text is None:
        yield plan
        return
    progress.say(f"if it is interrupted, the same command goes on where it ended, from {folder}")
    pieces = _pieces(plan, text)
    expected = _forecast_values(plan, method, text, pieces, threads=threads)
    progress.say(f"forecast: {expected}")
    if not folder.exists():
        check_disk(expected.disk_bytes + plan.num_bytes, folder)
    solution = _solve(plan, method, text, folder, resume=resume, threads=threads, progress=progress)
    if pieces is not None:
        if not resume:
            remove_runs(folder, ["tuning"])
        solution = _tune(plan, solution, pieces, folder, threads=threads, progress=progress)
    yield doors.with_solution(plan, solution)


def _solve(
    plan: Plan,
    method: Method,
    text: Calibration,
    folder: Path,
    *,
    resume: bool,
    threads: int | None,
    progress: Progress,
) -> Solution:
    with progress.bar("solving", 100) as advance:
        solution = solve(
            method,
            plan.model.graph,
            plan.weight_formats,
            text,
            ties_outputs=_ties_outputs(plan),
            work_dir=folder,
            resume=resume,
            threads=threads,
            progress=percent(advance),
        )
    for note in solution.notes:
        progress.say(f"note: {note}")
    return solution


def _tune(
    plan: Plan, solution: Solution, pieces: TuningText, folder: Path, *, threads: int | None, progress: Progress
) -> Solution:
    """The solution with its norms and scales tuned."""
    with progress.bar("tuning", 100) as advance:
        tuned = tune(plan.model.graph, solution, pieces, work_dir=folder, threads=threads, progress=percent(advance))
    for line in tuning_lines(tuned.tuning):
        progress.say(line)
    return tuned
