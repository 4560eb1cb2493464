"""The solvers by name: how the stored values of an export are chosen.

``rtn`` rounds to nearest under searched scales, and needs no text.  ``gptq`` chooses the values of each layer so that
its outputs on a calibration text change least, given what the layers before it have already lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from qwen3_export.calibration.gptq_report import CalibrationReport
from qwen3_export.calibration.sequential import gptq_graph
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.targets.gguf.export import GgufExport, with_solution

__all__ = ["solve_gptq"]


def solve_gptq(
    export: GgufExport,
    calibration: Calibration,
    *,
    work_dir: Path,
    resume: bool = True,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[GgufExport, CalibrationReport]:
    """The export with GPTQ's values in the very formats that it had.

    Each weight's result is kept in ``work_dir`` as it comes, and the export reads it from there: the folder must
    outlive the writing.  With ``resume`` an interrupted run goes on where it ended.
    """
    if not resume:
        for earlier in work_dir.glob("gptq-*"):
            shutil.rmtree(earlier)
    graph, report = gptq_graph(
        export.model.graph,
        export.weight_formats,
        calibration.windows,
        work_dir=work_dir,
        threads=threads,
        progress=progress,
    )
    solved = with_solution(
        export,
        graph,
        method="gptq",
        dataset=calibration.source,
        sha256=calibration.digest,
        num_tokens=calibration.num_tokens,
        errors={weight.name: weight.error for weight in report.weights},
    )
    return solved, report
