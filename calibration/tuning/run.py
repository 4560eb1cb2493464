"""Tune norms and scales after a solver has chosen codes: least KL divergence from the fp32 model on calibration text.

Replies with a thought, replies without one, and other text count alike: each kind's divergence is divided by what it
was on average before. Some pieces of the text are held back. At the end the model before and after is compared on them.
Where the mean does not fall, or one of the kinds loses more than before (by more than a standard error, taken over
pieces), a half and a quarter of the way are tried; and where these are no better, the values stay as the solver left
them.

Each step passes some windows forwards and back through the quantized model (``gradients``). What is tuned is kept from
time to time, so that an interrupted run goes on:

    tuning-1f0c…/state.safetensors      changes so far, and Adam's means

Shapes: T tokens of one window, P positions
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.digests import run_key
from qwen3_export.calibration.tuning.divergence import Answers, answers, divergences
from qwen3_export.calibration.tuning.gradients import gradients
from qwen3_export.calibration.tuning.kinds import KINDS
from qwen3_export.calibration.tuning.parameters import Parameters
from qwen3_export.calibration.tuning.text import LEAST_POSITIONS, Kinds, TuningText, Windows
from qwen3_export.files.atomic import partial_file, write_all
from qwen3_export.files.recognise import is_work_file
from qwen3_export.files.unfinished import make_run_folder
from qwen3_export.graph import Graph
from qwen3_export.parallel import default_threads
from qwen3_export.reference.model import forward

__all__ = ["TuneSettings", "Tuned", "num_steps", "tune_graph"]

# Raise it when a change makes results differ from those of older runs, or their files.
VERSION = 1


# In nats: what loses less counts no more.
LEAST_LOSS = 1e-7

SECONDS_BETWEEN_SAVES = 60.0

# Parts of the way that are tried, until no kind of text loses.
FRACTIONS = (1.0, 0.5, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSettings:
    """The text is passed ``epochs`` times, so many tokens in each step; the rate is Adam's at first."""

    batch_tokens: int = 2048
    epochs: int = 3
    rate: float = 3e-4


class Losses(NamedTuple):
    """Mean KL divergences in nats, and the standard error of their difference."""

    before: float
    after: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result; ``losses`` are those on what was held back, by kind of text.

    ``measured_before`` and ``measured`` are those of all positions, ``fraction`` is the part of the way that was gone.
    ``keeps_solved`` says that the values stay as they were; ``graph`` has them then.
    """

    graph: Graph
    num_tokens: int
    fraction: float
    measured_before: float
    measured: float
    losses: Mapping[str, Losses]
    keeps_solved: bool

    def record(self) -> dict[str, Any]:
        """What artifacts and reports say of it."""
        return {
            "num_tokens": self.num_tokens,
            "fraction": self.fraction,
            "measured": self.measured,
            "measured_before": self.measured_before,
            "by_kind": {kind: losses._asdict() for kind, losses in self.losses.items()},
            "keeps_solved": self.keeps_solved,
        }


def tune_graph(
    graph: Graph,
    quantized: Graph,
    solved: Mapping[str, str],
    text: TuningText,
    *,
    work_dir: Path,
    settings: TuneSettings | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tuned:
    """Tune ``quantized`` (all norms, and the weights of ``solved``) to answer as ``graph`` does.

    ``solved`` has a digest of the values of each weight that a solver has chosen, by name. Raises OutputError for a
    disk that is full.
    """
    settings = settings or TuneSettings()
    run = _Run(
        graph=graph,
        quantized=quantized,
        parameters=Parameters.of(quantized, solved),
        seen=_tensors(text.seen),
        kinds=text.seen_kinds,
        path=_folder(work_dir, graph, solved, text, settings),
        settings=settings,
        threads=threads or default_threads(),
    )
    run.train(progress or (lambda _done, _total: None))
    return _compared(graph, quantized, run.parameters, text)


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run in progress."""

    graph: Graph
    quantized: Graph
    parameters: Parameters
    seen: list[Tensor]
    kinds: Kinds
    path: Path
    settings: TuneSettings
    threads: int
    saved_at: float = field(default_factory=time.monotonic)

    def train(self, progress: Callable[[int, int], None]) -> None:
        batches = list(self._batches())
        done = self._load()
        if done < len(batches):
            expected, tuned = answers(self.graph, self.seen), self.parameters.tuned()
            weights = self._weights(expected)
            for step, batch in enumerate(batches[done:], start=done + 1):
                self._step(tuned, expected, weights, batch, step=step, total=len(batches))
                progress(step, len(batches))
            self._save(len(batches))

    def _weights(self, expected: Answers) -> list[Tensor]:
        """How much each position counts, so that kinds count alike: 1 over what their positions lose before."""
        losses_P = divergences(self.graph, expected, self.quantized, forward(self.quantized, self.seen))
        kinds_P, weights_P = np.concatenate(list(self.kinds)), torch.zeros(len(losses_P))
        for kind in np.unique(kinds_P).tolist():
            places = torch.from_numpy(kinds_P == kind)
            weights_P[places] = 1 / max(float(losses_P[places].mean()), LEAST_LOSS)
        return list(torch.split(weights_P, [len(tokens_T) for tokens_T in self.seen]))

    def _step(
        self,
        tuned: Graph,
        expected: Answers,
        weights: Sequence[Tensor],
        batch: Sequence[int],
        *,
        step: int,
        total: int,
    ) -> None:
        found, windows = self.parameters.zeros(), [self.seen[i] for i in batch]
        weights_P = torch.cat([weights[i] for i in batch])
        gradients(
            self.graph,
            tuned,
            windows,
            expected.of(batch),
            weights_P / len(weights_P),
            found,
            folder=self.path,
            threads=self.threads,
        )
        # From the full rate down to nothing, along half a cosine.
        rate = self.settings.rate * (1 + math.cos(math.pi * (step - 1) / total)) / 2
        self.parameters.move(found, rate=rate, step=step)
        if time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES:
            self._save(step)

    def _batches(self) -> list[list[int]]:
        """The pieces of each step, in an order that the seed gives; what is left of an epoch is left out."""
        generator = np.random.default_rng(0)
        size = _batch_size(self.seen, self.settings)
        return [
            order[first : first + size].tolist()
            for order in (generator.permutation(len(self.seen)) for _ in range(self.settings.epochs))
            for first in range(0, len(order) - size + 1, size)
        ]

    def _load(self) -> int:
        """Take what an earlier run has kept; the number of its steps."""
        file = self.path / "state.safetensors"
        if not file.exists():
            return 0
        arrays = safetensors.numpy.load_file(file)
        done = int(arrays.pop("steps")[0])
        self.parameters.take(arrays)
        return done

    def _save(self, step: int) -> None:
        arrays: dict[str, NDArray[Any]] = {"steps": np.array([step], np.int64), **self.parameters.arrays()}
        content = safetensors.numpy.save(arrays)
        file = self.path / "state.safetensors"
        with partial_file(file, num_bytes=len(content), overwrite=True, is_ours=is_work_file) as descriptor:
            write_all(descriptor, content)
        self.saved_at = time.monotonic()


def num_steps(text: TuningText, settings: TuneSettings) -> int:
    """How many steps a run takes."""
    return settings.epochs * (len(text.seen) // _batch_size(text.seen, settings))


def _batch_size(pieces: Sequence[Any], settings: TuneSettings) -> int:
    return min(len(pieces), max(1, settings.batch_tokens // len(pieces[0])))


def _folder(work_dir: Path, graph: Graph, solved: Mapping[str, str], text: TuningText, settings: TuneSettings) -> Path:
    windows = [*text.seen, *text.held_back]
    key = run_key(f"tuning {VERSION}", graph, windows=windows, formats=solved, settings=asdict(settings))
    path = work_dir / f"tuning-{key}"
    make_run_folder(path)
    return path


def _compared(graph: Graph, before: Graph, parameters: Parameters, text: TuningText) -> Tuned:
    """Both graphs against the fp32 model on what was held back; the furthest part of the way by which no kind loses."""
    windows = _tensors(text.held_back)
    expected = answers(graph, windows)

    def losses_of(side: Graph) -> Tensor:
        return divergences(graph, expected, side, forward(side, windows))

    before_P, found = losses_of(before), list[Tuned]()
    for fraction in FRACTIONS:
        after = parameters.tuned(fraction)
        after_P = losses_of(after)
        found.append(
            Tuned(
                graph=after,
                num_tokens=text.num_tokens,
                fraction=fraction,
                measured_before=float(before_P.mean()),
                measured=float(after_P.mean()),
                losses=_by_kind(before_P, after_P, text.kinds),
                keeps_solved=False,
            )
        )
        if gains_everywhere(found[-1]):
            return found[-1]
    return replace(found[0], graph=before, keeps_solved=True)


def _by_kind(before_P: Tensor, after_P: Tensor, kinds: Kinds) -> dict[str, Losses]:
    """The losses of kinds that have positions enough."""
    pieces_P = np.repeat(np.arange(len(kinds)), [len(kinds_T) for kinds_T in kinds])
    kinds_P = np.concatenate(list(kinds))
    losses = {}
    for number, kind in enumerate(KINDS):
        places = kinds_P == number
        if places.sum() >= LEAST_POSITIONS:
            before, after = before_P.numpy()[places], after_P.numpy()[places]
            error = _standard_error(after - before, pieces_P[places])
            losses[kind] = Losses(before=float(before.mean()), after=float(after.mean()), error=error)
    return losses


def _standard_error(differences_P: NDArray[np.float64], pieces_P: NDArray[np.int64]) -> float:
    """Of the mean of differences that are alike within a piece; 0 where there is one piece."""
    _, places_P = np.unique(pieces_P, return_inverse=True)
    sums = np.bincount(places_P, weights=differences_P - differences_P.mean())
    count = len(sums)
    return float(np.sqrt(np.square(sums).sum() * count / max(count - 1, 1)) / len(differences_P)) if count > 1 else 0.0


def gains_everywhere(found: Tuned) -> bool:
    """Whether the mean falls, and no kind of text loses more by more than a standard error."""
    kinds = found.losses.values()
    return found.measured < found.measured_before and all(kind.after <= kind.before + kind.error for kind in kinds)


def _tensors(windows: Windows) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(window_T, np.int64)) for window_T in windows]
