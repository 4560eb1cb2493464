"""Read bytes of a file by position, without mapping it: mapped pages would count as resident memory."""

from __future__ import annotations

import os
from pathlib import Path

from qwen3_export.errors import CheckpointError

__all__ = ["read_exactly"]


def read_exactly(path: Path, offset: int, count: int, *, part: str) -> bytearray:
    """``count`` bytes from ``offset`` on; ``part`` says in messages what they hold.

    Raises CheckpointError if they are not there, before memory is taken for them.
    """
    try:
        with path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if offset < 0 or count < 0 or offset + count > size:
                raise CheckpointError(f"{path}: ends inside {part}; the file was changed or cut short")
            buffer = bytearray(count)
            view = memoryview(buffer)
            file.seek(offset)
            while view:
                got = file.readinto(view)
                if not got:
                    raise CheckpointError(f"{path}: ends inside {part}; the file was changed or cut short")
                view = view[got:]
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return buffer
