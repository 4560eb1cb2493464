"""Generate with a Core ML package: in Core ML on a Mac, elsewhere in the MIL executor with fp16 rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.errors import CheckpointError
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.speech import artifact_speech
from qwen3_export.generation.stepper import ChunkedStepper, Runtime, Stepper
from qwen3_export.targets.coreml.metadata_check import context_length
from qwen3_export.targets.coreml.read import CoremlFile, open_coreml
from qwen3_export.targets.coreml.run import CoremlSession, can_run_coreml, coremltools_version

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model

__all__ = ["generate"]

# The program gives the logits of every position: 80 MB for so many tokens of Qwen3's vocabulary.
CHUNK = 128
CORE_ML = "Core ML (coremltools {version})"
EXECUTOR = "the MIL executor, in fp16 (Core ML itself runs on a Mac)"


@contextmanager
def generate(path: Path, model: Model | None, *, threads: int | None = None) -> Iterator[Opened]:
    """Open a folder (or the package in it); ``model`` lends tokenizer or template where they are missing."""
    del threads  # torch's are set for the whole process, and Core ML takes what it likes
    file = open_coreml(path)
    folder = file.package.parent
    on_mac = can_run_coreml()
    session = CoremlSession(file.package, runs="coreml" if on_mac else "fp16", num_parameters=_num_values(file))

    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        stream = session.stream()
        yield ChunkedStepper(lambda tokens, _past: stream.append(tokens), positions=positions, chunk=CHUNK)

    longest = context_length(file)
    if longest < 1:
        raise CheckpointError(f"{file.package}: its mask does not say how long a sequence may be")
    name = CORE_ML.format(version=coremltools_version()) if on_mac else EXECUTOR
    yield Opened(runtime=Runtime(name=name, context_length=longest, start=start), speech=artifact_speech(folder, model))


def _num_values(file: CoremlFile) -> int:
    """Values that the package's constants stand for: of codes, scales and tables, codes are the most."""
    return sum(max(math.prod(blob.shape) for blob in parts.values()) for parts in file.constants.values())
