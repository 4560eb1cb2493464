"""What every export command does around its own target: calibrate, solve, keep unfinished work, check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Protocol, TypeVar

import typer

from qwen3_export.cli.console import human_duration, human_size, progress, say
from qwen3_export.errors import ExportError
from qwen3_export.files.unfinished import remove_runs

if TYPE_CHECKING:
    from qwen3_export.calibration.forecast import Forecast
    from qwen3_export.calibration.solving import Formats, Solution
    from qwen3_export.calibration.tokens import Calibration
    from qwen3_export.checkpoint.model import Model

__all__ = [
    "Export",
    "Method",
    "MethodOption",
    "Solving",
    "finish_with_check",
    "open_model",
    "written_folder",
]


class Method(str, Enum):
    """How the stored values are chosen."""

    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"


MethodOption = Annotated[
    Method,
    typer.Option(
        "--method",
        help="rtn rounds to nearest; gptq and awq are calibrated: better and slower, gptq by far the best.",
    ),
]


class Export(Protocol):
    """What is needed of a target's export here."""

    @property
    def model(self) -> Model: ...

    @property
    def out(self) -> Path: ...

    @property
    def num_bytes(self) -> int: ...

    @property
    def weight_formats(self) -> Formats: ...


AnyExport = TypeVar("AnyExport", bound=Export)


@dataclass(frozen=True, kw_only=True)
class Solving:
    """The options of a calibrated method, as the user gave them."""

    method: Method
    calibration: Path | None
    sequence_length: int
    samples: int
    seed: int
    work_dir: Path | None
    resume: bool
    threads: int | None
    measures_text: bool = False

    def __post_init__(self) -> None:
        if self.calibration is not None and not (self.is_calibrated or self.measures_text):
            raise ExportError("--calibration is for --method gptq and awq; rtn uses no text")

    @property
    def is_calibrated(self) -> bool:
        return self.method is not Method.RTN

    def read_text(self, model: Model) -> Calibration | None:
        """The calibration text as tokens, and its digest told; None for rtn."""
        return self.read_any_text(model) if self.is_calibrated else None

    def read_any_text(self, model: Model) -> Calibration:
        """The calibration text, whatever the method."""
        from qwen3_export.calibration.tokens import read_calibration

        text = read_calibration(
            self.calibration,
            model.tokenizer,
            sequence_length=self.sequence_length,
            num_samples=self.samples,
            seed=self.seed,
        )
        say(f"calibrating on {text.num_tokens:,} tokens of {text.source}, sha256 {text.digest[:16]}")
        return text

    def forecast(self, export: Export, text: Calibration | None) -> Forecast | None:
        """Say what solving will take."""
        from qwen3_export.calibration.solving import forecast_solving
        from qwen3_export.parallel import use_threads

        if text is None:
            return None
        use_threads(self.threads)
        expected = forecast_solving(
            self.method.value, export.model.graph, export.weight_formats, text, threads=self.threads
        )
        say(
            f"forecast: {human_duration(expected.seconds)}, {human_size(expected.memory_bytes)} of memory, "
            f"{human_size(expected.disk_bytes)} of disk for unfinished work"
        )
        return expected

    @contextmanager
    def solved(
        self,
        export: AnyExport,
        text: Calibration | None,
        with_solution: Callable[[AnyExport, Solution], AnyExport],
    ) -> Iterator[AnyExport]:
        """The export with solved values (rtn: as it is).

        Results are kept in a work folder beside it while the block runs: removed after, kept when interrupted or
        asked for.
        """
        if text is None:
            yield export
            return
        folder = self.work_dir or export.out.with_name(f"{export.out.name}.work")
        say(f"if it is interrupted, the same command goes on where it ended, from {folder}")
        expected = self.forecast(export, text)
        if not folder.exists() and expected is not None:
            from qwen3_export.calibration.forecast import check_disk

            check_disk(expected.disk_bytes + export.num_bytes, folder)
        yield with_solution(export, self._solve(export, text, folder))
        if self.work_dir is None:
            remove_runs(folder)

    def _solve(self, export: Export, text: Calibration, folder: Path) -> Solution:
        from qwen3_export.calibration.solving import solve
        from qwen3_export.parallel import use_threads

        use_threads(self.threads)
        with progress("solving", 100) as advance:
            told = 0

            def tell(done: int, total: int) -> None:
                nonlocal told
                advance(100 * done // total - told)
                told = 100 * done // total

            solution = solve(
                self.method.value,
                export.model.graph,
                export.weight_formats,
                text,
                work_dir=folder,
                resume=self.resume,
                threads=self.threads,
                progress=tell,
            )
        for note in solution.notes:
            say(f"note: {note}")
        return solution


@contextmanager
def written_folder(
    export: AnyExport,
    solving: Solving,
    *,
    with_solution: Callable[[AnyExport, Solution], AnyExport],
    is_ours: Callable[[str], bool],
    checkpoint: Model,
    force: bool,
) -> Iterator[AnyExport]:
    """The export with solved values, to be written in the block; what is in the way is refused before that."""
    from qwen3_export.files.atomic import check_output_folder

    text = solving.read_text(export.model)
    check_output_folder(export.out, overwrite=force, is_ours=is_ours, inputs=checkpoint.files())
    with solving.solved(export, text, with_solution) as ready:
        yield ready


def open_model(model: str, *, revision: str | None, offline: bool) -> Model:
    """The checkpoint, its notes told."""
    from qwen3_export.checkpoint.model import load

    opened = load(model, revision=revision, offline=offline)
    for note in opened.graph.notes:
        say(f"note: {note}")
    return opened


def finish_with_check(artifact: Path, report_path: Path, model: Model, *, threads: int | None) -> None:
    """Check what was written, save the report beside it, and exit with 3 if it is out of bounds."""
    from qwen3_export.cli.check import run_check, show_and_exit
    from qwen3_export.parity.report import save_report

    report = run_check(artifact, model, threads=threads)
    save_report(report, report_path)
    show_and_exit(report)
