"""What Python says of a file whose parts contradict each other, as one sentence of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qwen3_export.errors import CheckpointError

__all__ = ["told_as_damage"]


@contextmanager
def told_as_damage(path: Path) -> Iterator[None]:
    """Turn what reading a contradictory file raises (a missing name, a size that does not fit) into CheckpointError.

    A protobuf that can be parsed may still lack any part, or hold any number.
    """
    try:
        yield
    except (
        AttributeError,
        IndexError,
        KeyError,
        MemoryError,
        OverflowError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path}: is damaged ({reason}); copy or export it again") from error
