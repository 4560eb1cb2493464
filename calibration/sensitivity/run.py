"""Measure, in one pass over some text, what each weight would cost in each of its possible formats.

Results are kept layer by layer, so that an interrupted run goes on: its gradients are computed again, which is the
quick part, and what was measured is not measured again.

    sensitivity-1f0c…/layer-0003.json      losses by weight and format, and what a solver leaves of them
                      head.json, embedding.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.digests import run_key
from qwen3_export.calibration.sensitivity.backward import Passed, backward
from qwen3_export.calibration.sensitivity.losses import head_losses, left_by_solver, looked_up_losses, weight_losses
from qwen3_export.errors import CheckpointError
from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import is_work_file
from qwen3_export.files.unfinished import make_run_folder
from qwen3_export.graph import Graph, Kind, Role, Weight, module_name
from qwen3_export.parallel import default_threads
from qwen3_export.quantizers.formats import NumberFormat

__all__ = ["Sensitivity", "measure_sensitivity"]

# Raise it when a change makes results differ from those of older runs, or their files.
VERSION = 2

Candidates = Mapping[str, Sequence[NumberFormat]]
"""The formats that a weight may have, by the weight's name; weights that are not to be measured are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """Expected losses in nats a position, by weight name and format name, where values are rounded to nearest.

    ``left`` is the share that a solver is expected to leave of them, by weight name.
    """

    losses: Mapping[str, Mapping[str, float]]
    left: Mapping[str, float]
    num_tokens: int

    def loss(self, weight: str, number_format: str, *, is_solved: bool) -> float:
        """The expected loss by one weight; 0 for an expert that no token was sent to."""
        loss = self.losses.get(weight, {}).get(number_format, 0.0)
        return loss * self.left.get(weight, 1.0) if is_solved else loss


def measure_sensitivity(
    graph: Graph,
    candidates: Candidates,
    windows: Sequence[NDArray[np.int64]],
    *,
    work_dir: Path,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Sensitivity:
    """What each candidate would cost, on these windows of token ids, [T] each.

    Results are kept in ``work_dir``; the same call continues where an earlier one ended, and gives the same numbers.
    Raises CheckpointError for activations that are not finite, OutputError for a full disk.
    """
    names = {name: " ".join(found.name for found in formats) for name, formats in candidates.items()}
    path = (
        work_dir
        / f"sensitivity-{run_key(f'sensitivity {VERSION}', graph, windows=windows, formats=names, settings={})}"
    )
    make_run_folder(path)
    run = _Run(
        graph=graph,
        candidates=candidates,
        path=path,
        num_tokens=sum(map(len, windows)),
        threads=threads or default_threads(),
    )
    total, done = 2 * graph.config.num_hidden_layers, 0

    def advance() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    if not run.is_complete:
        tokens = [torch.from_numpy(np.asarray(window_T, np.int64)) for window_T in windows]
        backward(graph, tokens, run.visit, folder=path, advance=advance)
        run.close()
    return run.result()


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run in progress: the results of one part of the model, which are written when the next part begins."""

    graph: Graph
    candidates: Candidates
    path: Path
    num_tokens: int
    threads: int
    part: str = ""
    losses: dict[str, dict[str, float]] = field(default_factory=dict)
    left: dict[str, float] = field(default_factory=dict)
    last: tuple[Tensor, float] | None = None

    @property
    def is_complete(self) -> bool:
        return all(self._file(part).exists() for part in self._parts())

    def visit(self, role: Role, passed: Passed) -> None:
        part = _part(role, passed)
        if part != self.part:
            self.close()
            self.part = part
        name = module_name(role)
        formats = self.candidates.get(name)
        if formats is None or self._file(part).exists():
            return
        weight = self.graph[role]
        losses = self._measured(weight, formats, passed)
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise CheckpointError(f"{name}: its activations or gradients are not finite on this text; use another text")
        self.losses[name] = losses
        if role.kind is not Kind.EMBED_TOKENS or not passed.gradients:
            self.left[name] = self._left(passed)

    def close(self) -> None:
        """Write the results of the part that ends here."""
        if self.part and not self._file(self.part).exists():
            found = json.dumps({"losses": self.losses, "left": self.left})
            write_text(self._file(self.part), found, overwrite=True, is_ours=is_work_file)
        self.losses, self.left, self.last = {}, {}, None

    def result(self) -> Sensitivity:
        losses: dict[str, dict[str, float]] = {}
        left: dict[str, float] = {}
        for part in self._parts():
            found = json.loads(self._file(part).read_text(encoding="utf-8"))
            left |= found["left"]
            for name, by_format in found["losses"].items():
                before = losses.setdefault(name, {})
                for number_format, loss in by_format.items():
                    before[number_format] = before.get(number_format, 0.0) + loss
        return Sensitivity(losses=losses, left=left, num_tokens=self.num_tokens)

    def _left(self, passed: Passed) -> float:
        """The share that a solver leaves; weights with the same inputs come one after the other.

        The inputs are held, or the next ones could come to lie at the same address.
        """
        inputs = passed.inputs[0]
        if self.last is None or self.last[0].data_ptr() != inputs.data_ptr():
            self.last = inputs, left_by_solver(passed)
        return self.last[1]

    def _measured(self, weight: Weight, formats: Sequence[NumberFormat], passed: Passed) -> dict[str, float]:
        if not passed.gradients:
            return head_losses(self.graph, formats, passed, threads=self.threads)
        measure = looked_up_losses if weight.role.kind is Kind.EMBED_TOKENS else weight_losses
        return measure(weight, formats, passed, positions=self.num_tokens, threads=self.threads)

    def _parts(self) -> list[str]:
        return [*(f"layer-{layer:04d}" for layer in range(self.graph.config.num_hidden_layers)), "head", "embedding"]

    def _file(self, part: str) -> Path:
        return self.path / f"{part}.json"


def _part(role: Role, passed: Passed) -> str:
    if role.layer is not None:
        return f"layer-{role.layer:04d}"
    return "embedding" if passed.gradients else "head"
