"""The parameters of a block format: everything a stored row holds besides its codes.

Shapes: # R rows  S blocks a row  G groups a row (the sub-blocks that share one scale)

A value is ``scale_RG * level - offset_RG``, where the level is the code itself or, in the IQ4 formats, what the
code book says. Both are final: products of what the file stores, computed as a runtime computes them.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockParams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockParams:
    """Scales and offsets of R rows, as stored and as they take effect.

    ``block_scale_RS`` and ``block_offset_RS`` are float16 numbers held as float32 (ggml's ``d`` and ``dmin``).
    ``sub_scale_RG`` and ``sub_offset_RG`` are the integers that multiply them. Formats without one of these have
    None there; symmetric formats have zeros in ``offset_RG``.
    """

    scale_RG: NDArray[np.float32]
    offset_RG: NDArray[np.float32]
    block_scale_RS: NDArray[np.float32]
    block_offset_RS: NDArray[np.float32] | None = None
    sub_scale_RG: NDArray[np.int16] | None = None
    sub_offset_RG: NDArray[np.int16] | None = None

    def rows(self, rows: slice, *, of: int) -> BlockParams:
        """Those of a block of rows, of so many."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        found: dict[str, Any] = {name: None if array is None else array[rows] for name, array in arrays.items()}
        return BlockParams(**found)
