"""The folder in which a GPTQ run keeps its results, weight by weight, so that it can be resumed.

Its name depends on everything that a result depends on: checkpoint, tokens, formats, settings, the version of torch and
the number of its threads (on which the last bits of a product depend). A run that finds its own folder takes the
weights that are there. The other weights come out as the same bits as in an undisturbed run, because everything before
them is computed from the stored codes and from nothing else.

    gptq-1f0c…/model.layers.3.mlp.down_proj.solved   its codes and parameters (``quantizers.weights.solved``)
               model.layers.3.mlp.down_proj.json     its errors; written last, so that the weight is complete
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.digests import run_key
from qwen3_export.calibration.gptq.report import WeightReport
from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import is_work_file
from qwen3_export.files.unfinished import make_run_folder
from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.gptq.solver import GptqResult
from qwen3_export.quantizers.weights.solved import SolvedWeight, save_solved

__all__ = ["GptqFolder", "open_gptq_folder"]

# Raise it when a change makes results differ from those of older runs.
VERSION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqFolder:
    """The folder of one run."""

    path: Path

    def create(self) -> None:
        """Make the folder; OutputError if that is not possible."""
        make_run_folder(self.path)

    def load(self, weight: Weight, number_format: NumberFormat) -> tuple[Weight, WeightReport] | None:
        """The stored result for a weight, or None if there is none yet."""
        report = self._file(weight, "json")
        if not report.exists():
            return None
        return self._stored(weight, number_format), WeightReport(**json.loads(report.read_text(encoding="utf-8")))

    def save(self, weight: Weight, number_format: NumberFormat, result: GptqResult, report: WeightReport) -> Weight:
        """Write a result; returns the weight that reads it."""
        save_solved(self._file(weight, "solved"), number_format, result.codes_OI, result.params)
        write_text(self._file(weight, "json"), json.dumps(asdict(report)), overwrite=True, is_ours=is_work_file)
        return self._stored(weight, number_format)

    def _stored(self, weight: Weight, number_format: NumberFormat) -> Weight:
        path = self._file(weight, "solved")
        return SolvedWeight(role=weight.role, shape=weight.shape, number_format=number_format, path=path)

    def _file(self, weight: Weight, suffix: str) -> Path:
        return self.path / f"{weight.name}.{suffix}"


def open_gptq_folder(
    root: Path,
    graph: Graph,
    *,
    windows: Sequence[NDArray[np.int64]],
    formats: Mapping[str, NumberFormat],
    settings: Mapping[str, Any],
) -> GptqFolder:
    """The folder inside ``root`` for a run with these inputs; nothing is created yet."""
    names = {name: number_format.name for name, number_format in formats.items()}
    key = run_key(f"gptq {VERSION}", graph, windows=windows, formats=names, settings=settings)
    return GptqFolder(path=root / f"gptq-{key}")
