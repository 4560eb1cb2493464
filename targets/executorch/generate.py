"""Generate with an ExecuTorch program in its own runtime, with the tokenizer that lies beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_export.errors import ExportError
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.speech import artifact_speech
from qwen3_export.generation.stepper import ChunkedStepper, Runtime, Stepper
from qwen3_export.targets.executorch.check import program_path
from qwen3_export.targets.executorch.run import Program, runtime_version

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model

__all__ = ["generate"]


@contextmanager
def generate(path: Path, model: Model | None, *, threads: int | None = None) -> Iterator[Opened]:
    """Open a folder (or the program in it); ``model`` lends tokenizer or template where they are missing.

    What runners ask a program is asked here: how long a sequence and one call may be, and which tokens end a turn.
    """
    del threads  # XNNPACK takes as many as it likes
    file = program_path(path)
    program = Program(file)
    positions = program.constant("get_max_context_len")
    if program.refusal is not None:
        raise ExportError(program.refusal)
    if not isinstance(positions, int):
        raise ExportError(f"{file}: does not say how long its context is (get_max_context_len)")
    most = program.max_tokens or 1

    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        yield ChunkedStepper(
            lambda tokens, past: program.last_logits(tokens, start=past), positions=positions, chunk=most
        )

    ends = program.constant("get_eos_ids")
    speech = artifact_speech(file.parent, model, end_ids=_ids(ends))
    name = f"ExecuTorch {runtime_version()}"
    yield Opened(runtime=Runtime(name=name, context_length=positions, start=start), speech=speech)


def _ids(stated: Any) -> list[int]:
    """One id comes as a number."""
    values = stated if isinstance(stated, list) else [stated]
    return [int(value) for value in values if isinstance(value, int)]
