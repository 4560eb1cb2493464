"""Scales and offsets of a block format: everything that a stored row holds besides its codes.

Shapes: # R rows  S blocks a row  G groups a row (the sub-blocks that share one scale)

A value is ``scale_RG * level - offset_RG``. The level is the code itself or, in the IQ4 formats, an entry of the code
book. Scale and offset are products of the numbers in the file, computed as a runtime computes them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockParams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockParams:
    """Scales and offsets of R rows: the numbers that are stored, and their products.

    ``block_scale_RS`` and ``block_offset_RS`` are float16 numbers held as float32 (ggml's ``d`` and ``dmin``).
    ``sub_scale_RG`` and ``sub_offset_RG`` are the integers that multiply them. A field is None where a format has no
    such numbers; symmetric formats have zeros in ``offset_RG``.
    """

    scale_RG: NDArray[np.float32]
    offset_RG: NDArray[np.float32]
    block_scale_RS: NDArray[np.float32]
    block_offset_RS: NDArray[np.float32] | None = None
    sub_scale_RG: NDArray[np.int16] | None = None
    sub_offset_RG: NDArray[np.int16] | None = None

    def rows(self, rows: slice, *, of: int) -> BlockParams:
        """The parameters of a block of rows; ``of`` is the number of all rows."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        found: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return BlockParams(**found)
