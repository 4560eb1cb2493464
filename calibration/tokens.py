"""Turn calibration text into windows of tokens: the package's own sample, or a file of the user.

A ``.txt`` file is one text. A ``.jsonl`` file has an object on each line, with ``text`` or with ``messages`` (and
perhaps ``tools`` and ``enable_thinking``), which are rendered with the checkpoint's chat template, as in later use. All
texts are tokenized and put one after the other, and cut into windows of equal length. If there are more windows than
wanted, some are drawn at random by the seed; their order stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from qwen3_export.calibration.digests import token_digest
from qwen3_export.errors import CalibrationError, UnsupportedModelError

__all__ = ["Calibration", "TextEncoder", "evenly", "read_calibration", "sample_path"]

DEFAULT_SAMPLES, DEFAULT_LENGTH = 128, 512
GOOD_TOKENS = DEFAULT_SAMPLES * DEFAULT_LENGTH

# Fewer tokens are too few for any model, and text with fewer different tokens is no text.
MIN_TOKENS, MIN_DISTINCT_TOKENS = 1024, 16


Piece = TypeVar("Piece")


class TextEncoder(Protocol):
    """The part of a tokenizer that calibration needs."""

    def encode(self, text: str) -> list[int]: ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Windows of token ids, [T] int64 each, all of one length; ``source`` is the file's name."""

    windows: tuple[NDArray[np.int64], ...]
    source: str
    seed: int

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.windows))

    @property
    def digest(self) -> str:
        """Identifies these tokens in reports and files."""
        return token_digest(self.windows)


def sample_path() -> Path:
    """The sample text that ships with the package, and was written for it."""
    return Path(str(resources.files("qwen3_export.data").joinpath("calibration", "sample.jsonl")))


def read_calibration(
    path: Path | None,
    tokenizer: TextEncoder,
    *,
    sequence_length: int = DEFAULT_LENGTH,
    num_samples: int = DEFAULT_SAMPLES,
    seed: int = 0,
) -> Calibration:
    """At most ``num_samples`` windows of ``sequence_length`` tokens from a file; None is the package's sample.

    A text that is shorter than one window gives one shorter window. Raises CalibrationError for a file that cannot be
    read, is no text, or has too little text.
    """
    if num_samples < 1 or sequence_length < 2:
        raise CalibrationError(f"{num_samples} windows of {sequence_length} tokens are none; take 1 of 2 at least")
    source = sample_path() if path is None else path
    row_T = np.array([token for text in _texts(tokenizer, source) for token in tokenizer.encode(text)], np.int64)
    _check_enough(source, row_T)
    length = min(sequence_length, len(row_T))
    return Calibration(
        windows=tuple(_cut(row_T, count=num_samples, length=length, seed=seed)), source=source.name, seed=seed
    )


def evenly(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """At most ``count`` of these pieces, evenly spaced, the first and the last among them; all where there are less."""
    places = np.linspace(0, len(pieces) - 1, min(len(pieces), count)).round().astype(int)
    return [pieces[i] for i in places.tolist()]


def _cut(row_T: NDArray[np.int64], *, count: int, length: int, seed: int) -> list[NDArray[np.int64]]:
    starts = np.arange(0, len(row_T) - length + 1, length)
    if len(starts) > count:
        starts = np.sort(np.random.default_rng(seed).choice(starts, count, replace=False))
    return [row_T[start : start + length].copy() for start in starts.tolist()]


def _check_enough(source: Path, row_T: NDArray[np.int64]) -> None:
    if len(row_T) == 0:
        raise CalibrationError(f"{source}: has no text; {GOOD_TOKENS} tokens of it do well")
    distinct = len(np.unique(row_T))
    if distinct < MIN_DISTINCT_TOKENS:
        raise CalibrationError(
            f"{source}: only {distinct} different tokens in {len(row_T)}; give text as the model will see it"
        )
    if len(row_T) < MIN_TOKENS:
        raise CalibrationError(
            f"{source}: only {len(row_T)} tokens; at least {MIN_TOKENS} are needed, {GOOD_TOKENS} do well"
        )


def _texts(tokenizer: TextEncoder, source: Path) -> Iterator[str]:
    try:
        content = source.read_text(encoding="utf-8")
    except OSError as error:
        raise CalibrationError(f"{source}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise CalibrationError(f"{source}: is not UTF-8 text (byte {error.start})") from error
    if source.suffix.lower() not in (".jsonl", ".ndjson"):
        yield content
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            yield _text_of(tokenizer, line, where=f"{source}, line {number}")


def _text_of(tokenizer: TextEncoder, line: str, *, where: str) -> str:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise CalibrationError(f"{where}: is not JSON ({error})") from error
    if not isinstance(entry, dict):
        raise CalibrationError(f"{where}: is no JSON object; one with text or messages is needed")
    if isinstance(entry.get("text"), str):
        return str(entry["text"])
    messages = entry.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise CalibrationError(f"{where}: has neither text (a string) nor messages (a list of objects)")
    return _render(tokenizer, messages, entry, where=where)


def _render(
    tokenizer: TextEncoder, messages: Sequence[Mapping[str, Any]], entry: Mapping[str, Any], *, where: str
) -> str:
    try:
        return tokenizer.render(
            messages,
            enable_thinking=entry.get("enable_thinking"),
            add_generation_prompt=False,
            tools=entry.get("tools"),
        )
    except UnsupportedModelError as error:
        raise CalibrationError(f"{where}: {error}") from error
