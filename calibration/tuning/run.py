"""Tune norms and scales after a solver has chosen codes: least KL divergence from the fp32 model on calibration text.

Some pieces of the text are held back. At the end the model before and after is compared on them, apart for replies
with a thought, replies without one, and other text. Where the mean does not fall, or one of the kinds loses more than
before, the values stay as the solver left them. A text that lacks one of the two kinds of replies is completed by the
dialogues that ship with the package.

Each step passes some windows forwards and back through the quantized model (``gradients``). What is tuned is kept from
time to time, so that an interrupted run goes on:

    tuning-1f0c…/state.safetensors      changes so far, and Adam's means

Shapes: T tokens of one window, P positions
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.digests import run_key
from qwen3_export.calibration.tokens import Calibration, TextEncoder, read_calibration
from qwen3_export.calibration.tuning.divergence import Answers, answers, divergences
from qwen3_export.calibration.tuning.gradients import gradients
from qwen3_export.calibration.tuning.kinds import DIALOGUES, KINDS, Markers, kinds_of, read_markers
from qwen3_export.calibration.tuning.parameters import Parameters
from qwen3_export.errors import CalibrationError, OutputError
from qwen3_export.files.atomic import partial_file, write_all
from qwen3_export.files.recognise import is_work_file
from qwen3_export.graph import Graph
from qwen3_export.parallel import default_threads
from qwen3_export.reference.model import forward

__all__ = ["TuneSettings", "Tuned", "TuningText", "num_steps", "tune_graph", "tuning_text"]

# Raise it when a change makes results differ from those of older runs, or their files.
VERSION = 1

# So much of a text is used at most, the part that is held back included.
TOKENS = 32768
# The text is cut into pieces of so many tokens, or of its windows' length; one of so many is held back.
PIECE, HELD_BACK = 256, 8
# So many windows of the package's own dialogues are added where the text has none of one kind.
DIALOGUE_WINDOWS = 16
# A kind counts where so many positions of it are held back.
LEAST_POSITIONS = 64

SECONDS_BETWEEN_SAVES = 60.0

Windows = Sequence[NDArray[np.int64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneSettings:
    """The text is passed ``epochs`` times, so many tokens in each step; the rate is Adam's at first."""

    batch_tokens: int = 2048
    epochs: int = 3
    rate: float = 3e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class TuningText:
    """Pieces of T tokens, to tune on and to compare on; ``kinds`` are those of the tokens of the latter."""

    seen: Windows
    held_back: Windows
    kinds: Sequence[NDArray[np.int8]]

    @property
    def num_tokens(self) -> int:
        """Tokens that are tuned on."""
        return sum(map(len, self.seen))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """The result; ``losses`` are mean KL divergences in nats on what was held back, before and after, by kind.

    ``measured_before`` and ``measured`` are those of all positions. ``keeps_solved`` says that the values stay as they
    were; ``graph`` has them then.
    """

    graph: Graph
    num_tokens: int
    measured_before: float
    measured: float
    losses: Mapping[str, tuple[float, float]]
    keeps_solved: bool

    def record(self) -> dict[str, Any]:
        """What artifacts and reports say of it."""
        return {
            "num_tokens": self.num_tokens,
            "measured": self.measured,
            "measured_before": self.measured_before,
            "by_kind": {kind: list(pair) for kind, pair in self.losses.items()},
            "keeps_solved": self.keeps_solved,
        }


def tuning_text(calibration: Calibration, tokenizer: TextEncoder) -> TuningText:
    """Cut a calibration text into pieces, and hold some of them back.

    Raises CalibrationError for a text that is too short for both.
    """
    markers = read_markers(tokenizer)
    length = min(PIECE, max(map(len, calibration.windows)))
    seen, held = _parts(calibration.windows, markers, length)
    if not all(_count(held, kind) >= LEAST_POSITIONS for kind in DIALOGUES):
        dialogues = read_calibration(None, tokenizer, num_samples=DIALOGUE_WINDOWS)
        more, held_more = _parts(dialogues.windows, markers, length)
        seen, held = [*seen, *more], [*held, *held_more]
    return TuningText(
        seen=[piece.tokens_T for piece in seen],
        held_back=[piece.tokens_T for piece in held],
        kinds=[piece.kinds_T for piece in held],
    )


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
        parameters=Parameters.of(quantized, solved),
        seen=_tensors(text.seen),
        path=_folder(work_dir, graph, solved, text, settings),
        settings=settings,
        threads=threads or default_threads(),
    )
    run.train(progress or (lambda _done, _total: None))
    return _compared(graph, quantized, run.parameters.tuned(), text)


@dataclass(slots=True, kw_only=True)
class _Run:
    """A run in progress."""

    graph: Graph
    parameters: Parameters
    seen: list[Tensor]
    path: Path
    settings: TuneSettings
    threads: int
    saved_at: float = field(default_factory=time.monotonic)

    def train(self, progress: Callable[[int, int], None]) -> None:
        batches = list(self._batches())
        done = self._load()
        # A pass through the fp32 model comes first: about half a step.
        if done < len(batches):
            expected, tuned = answers(self.graph, self.seen), self.parameters.tuned()
            for step, batch in enumerate(batches[done:], start=done + 1):
                self._step(tuned, expected, batch, step=step, total=len(batches))
                progress(step, len(batches))
            self._save(len(batches))

    def _step(self, tuned: Graph, expected: Answers, batch: Sequence[int], *, step: int, total: int) -> None:
        found = self.parameters.zeros()
        windows = [self.seen[i] for i in batch]
        gradients(self.graph, tuned, windows, expected.of(batch), found, folder=self.path, threads=self.threads)
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
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror}); choose another `work_dir`") from error
    return path


def _compared(graph: Graph, before: Graph, after: Graph, text: TuningText) -> Tuned:
    """Both graphs against the fp32 model on what was held back."""
    windows = _tensors(text.held_back)
    expected = answers(graph, windows)
    before_P, after_P = (divergences(graph, expected, side, forward(side, windows)) for side in (before, after))
    kinds_P = np.concatenate(list(text.kinds))
    losses = {}
    for number, kind in enumerate(KINDS):
        places = torch.from_numpy(kinds_P == number)
        if int(places.sum()) >= LEAST_POSITIONS:
            losses[kind] = float(before_P[places].mean()), float(after_P[places].mean())
    means = float(before_P.mean()), float(after_P.mean())
    gains = gains_everywhere(means, losses)
    return Tuned(
        graph=after if gains else before,
        num_tokens=text.num_tokens,
        measured_before=means[0],
        measured=means[1],
        losses=losses,
        keeps_solved=not gains,
    )


class _Piece(NamedTuple):
    """Some tokens, and the kind of each."""

    tokens_T: NDArray[np.int64]
    kinds_T: NDArray[np.int8]


def gains_everywhere(means: tuple[float, float], losses: Mapping[str, tuple[float, float]]) -> bool:
    """Whether the mean falls, and no kind of text loses more; pairs are before and after."""
    return means[1] < means[0] and all(after <= before for before, after in losses.values())


def _parts(windows: Windows, markers: Markers, length: int) -> tuple[list[_Piece], list[_Piece]]:
    """Pieces to tune on, and pieces that are held back, evenly spaced."""
    pieces = []
    for window_T in windows:
        kinds_T = kinds_of(window_T, markers)
        for first in range(0, len(window_T) - length + 1, length):
            part = slice(first, first + length)
            pieces.append(_Piece(window_T[part], kinds_T[part]))
    if len(pieces) < 2:
        raise CalibrationError(
            f"{sum(map(len, windows))} tokens in {len(windows)} windows are too few to tune on and to compare on; give "
            "more text, or shorter windows"
        )
    count = min(len(pieces), max(2, TOKENS // length))
    chosen = [pieces[i] for i in np.linspace(0, len(pieces) - 1, count).round().astype(int).tolist()]
    every = min(HELD_BACK, count)
    return [piece for i, piece in enumerate(chosen) if i % every != every - 1], chosen[every - 1 :: every]


def _count(pieces: Sequence[_Piece], kind: str) -> int:
    return sum(int((piece.kinds_T == KINDS.index(kind)).sum()) for piece in pieces)


def _tensors(windows: Windows) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(window_T, np.int64)) for window_T in windows]
