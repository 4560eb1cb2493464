"""A weight whose blocks lie ready in a file: what a solver leaves in its work folder.

It offers what ``QuantizedWeight`` does (see ``BlockWeight``), so that a writer cannot tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qwen3_export.files.positional import read_exactly
from qwen3_export.graph import ALL_ROWS, Role, module_name
from qwen3_export.quantizers.ggml import GgmlFormat

__all__ = ["StoredBlocks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlocks:
    """A matrix in one of GGML's formats; ``path`` holds its rows, one after the other, and nothing else."""

    role: Role
    shape: tuple[int, ...]
    number_format: GgmlFormat
    path: Path

    @property
    def name(self) -> str:
        return module_name(self.role)

    @property
    def format(self) -> str:
        return self.number_format.name

    @property
    def row_bytes(self) -> int:
        return self.number_format.row_bytes(self.shape[-1])

    def encode(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """The stored bytes of a block of rows, uint8 [rows, row_bytes]."""
        first, last, _ = rows.indices(self.shape[0])
        count = max(last - first, 0)
        data = read_exactly(self.path, first * self.row_bytes, count * self.row_bytes, part=self.name)
        return np.frombuffer(data, np.uint8).reshape(count, self.row_bytes)

    def read(self, rows: slice = ALL_ROWS) -> np.ndarray:
        """What a runtime will read from the stored bytes, fp32."""
        return self.number_format.decode(self.encode(rows))
