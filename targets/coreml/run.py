"""Run a package as an app does: tokens in, logits of every position out, with states between calls.

The MIL executor runs it on any machine, exactly or with fp16 rounding. On a Mac, Core ML itself can run it too.
"""

# T tokens  S positions seen  V vocabulary

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError
from qwen3_export.targets.coreml.mil import Overflow, Package, open_package
from qwen3_export.targets.coreml.names import ATTENTION_MASK, FULL_MASK, INPUT_IDS, KEY_CACHE, LOGITS, VALUE_CACHE

__all__ = [
    "CoremlSession",
    "CoremlStream",
    "Runs",
    "can_run_coreml",
    "causal_mask",
    "coremltools_version",
    "feed",
    "is_installed",
    "mask_input",
]

# The mask value of an app: the lowest finite fp16 number (swift-transformers' LanguageModel.swift).
BLOCKED = np.finfo(np.float16).min
# Decoded weights stay in memory between calls if all of them together take at most this.
KEPT_BYTES = 3 << 30

Runs = Literal["exact", "fp16", "coreml"]
Inputs = Mapping[str, NDArray[Any]]


class _Runner(Protocol):
    """Runs a package; each sequence has its own states."""

    def new_state(self) -> Any: ...

    def predict(self, inputs: Inputs, state: Any) -> NDArray[Any]:
        """Compute the logits [1, T, V]."""
        ...


def is_installed() -> bool:
    """True if coremltools is installed, which opening a package needs."""
    return importlib.util.find_spec("coremltools") is not None


def coremltools_version() -> str | None:
    """The version of coremltools, or None if it is not installed."""
    try:
        return importlib.metadata.version("coremltools")
    except importlib.metadata.PackageNotFoundError:
        return None


def can_run_coreml() -> bool:
    """True on a Mac with coremltools, where Core ML itself can run the package."""
    return sys.platform == "darwin" and is_installed()


def causal_mask(past: int, count: int) -> NDArray[np.float16]:
    """The mask [1, 1, T, S]: 0 where a token may look, else the lowest finite fp16 number."""
    is_later_TS = np.arange(past + count)[None] > np.arange(past, past + count)[:, None]
    return np.where(is_later_TS, BLOCKED, 0).astype(np.float16)[None, None]


def keeps_weights(num_parameters: int) -> bool:
    """True if the executor decodes each weight once. For larger models it decodes them in every run."""
    return 4 * num_parameters <= KEPT_BYTES


def mask_input(package: Package) -> str:
    """The name of the package's mask, which stands for its form."""
    return FULL_MASK if FULL_MASK in package.inputs else ATTENTION_MASK


def feed(tokens: Sequence[int], *, past: int = 0, mask: str = ATTENTION_MASK) -> dict[str, NDArray[Any]]:
    """The inputs for ``tokens`` that follow ``past`` tokens already in the states, as swift-transformers makes them.

    ``mask`` names the mask: zeros with one column too many, or the causal mask.
    """
    zeros = np.zeros((1, 1, 1, past + len(tokens) + 1), np.float16)
    values = causal_mask(past, len(tokens)) if mask == FULL_MASK else zeros
    return {INPUT_IDS: np.array([tokens], np.int32), mask: values}


class CoremlSession:
    """One opened package; ``runs`` selects what runs it.

    ``overflow`` is the first operation of any run whose result was not finite (checked in fp16 mode only).
    ``mask`` is the name of the package's mask.
    """

    def __init__(self, package: Path, *, runs: Runs, num_parameters: int = 0) -> None:
        self.overflow: Overflow | None = None
        opened = open_package(package, keep_weights=keeps_weights(num_parameters))
        self.mask = mask_input(opened)
        self._runner: _Runner = (
            _CoremlRunner(package) if runs == "coreml" else _ExecutorRunner(opened, runs, self._note)
        )

    def logits(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits of every position in one prefill, [T, V]."""
        return next(self.run(tokens))

    def run(self, tokens: Sequence[int], *, chunk: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Run tokens in chunks through the states; yields the logits of each chunk, [chunk, V]."""
        yield from self._run(tokens, chunk or len(tokens), self._runner.new_state())

    def _run(self, tokens: Sequence[int], step: int, state: Any) -> Iterator[NDArray[np.float32]]:
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            yield self._runner.predict(feed(part, past=start, mask=self.mask), state)[0].astype(np.float32)

    def caches(self, tokens: Sequence[int], *, chunk: int) -> dict[int, tuple[NDArray[Any], NDArray[Any]]]:
        """Keys and values of each layer, [S, K, H], after a run in chunks. Only with the executor."""
        assert isinstance(self._runner, _ExecutorRunner)
        state = self._runner.new_state()
        for _ in self._run(tokens, chunk, state):
            pass
        keys, values = (
            state.numpy(name)[:, 0, :, : len(tokens)].transpose(0, 2, 1, 3) for name in (KEY_CACHE, VALUE_CACHE)
        )
        return {layer: (keys[layer], values[layer]) for layer in range(len(keys))}

    def stream(self) -> CoremlStream:
        """Start a sequence that can be continued as its tokens become known."""
        return CoremlStream(self._runner, mask=self.mask)

    def _note(self, overflow: Overflow | None) -> None:
        self.overflow = self.overflow or overflow


class CoremlStream:
    """A growing sequence; the runner keeps its states between calls."""

    def __init__(self, runner: _Runner, *, mask: str) -> None:
        self._runner, self._mask, self._state, self._length = runner, mask, runner.new_state(), 0

    def append(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits [V] of the last one."""
        logits_BTV = self._runner.predict(feed(tokens, past=self._length, mask=self._mask), self._state)
        self._length += len(tokens)
        return np.array(logits_BTV[0, -1], np.float32)


class _ExecutorRunner:
    def __init__(self, package: Package, mode: str, note: Any) -> None:
        self._package, self._mode, self._note = package, mode, note

    def new_state(self) -> Any:
        return self._package.new_state()

    def predict(self, inputs: Inputs, state: Any) -> NDArray[Any]:
        outputs = self._package.run(inputs, state=state, mode=self._mode)
        self._note(outputs.overflow)
        if LOGITS not in outputs:
            raise CheckpointError(f"{self._package.path}: has no output {LOGITS}")
        return outputs[LOGITS]


class _CoremlRunner:
    """Core ML itself, on the processor that it chooses."""

    def __init__(self, package: Path) -> None:
        import coremltools

        try:
            self._model: Any = coremltools.models.MLModel(str(package))
        except Exception as error:  # Core ML raises many types
            raise CheckpointError(f"{package}: Core ML cannot load it ({error})") from error

    def new_state(self) -> Any:
        return self._model.make_state()

    def predict(self, inputs: Inputs, state: Any) -> NDArray[Any]:
        try:
            return np.asarray(self._model.predict(dict(inputs), state=state)[LOGITS])
        except Exception as error:  # Core ML raises many types
            raise CheckpointError(f"Core ML cannot run the package ({error})") from error
