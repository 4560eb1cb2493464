"""What a weight in an affine integer format stores besides its codes.

Shapes: # R rows  G groups a row

A value is ``scale * (code - zero_point)``. Codes and zero points are signed everywhere here (-8 … 7 for four bits),
whatever a file calls them: storage forms that count from 0 add half the range to both, which changes no value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AffineParams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineParams:
    """Scales (float32, but numbers of the format's scale dtype) and zero points of R rows; symmetric ones are 0."""

    scale_RG: NDArray[np.float32]
    zero_point_RG: NDArray[np.int8]

    @property
    def offset_RG(self) -> NDArray[np.float32]:  # noqa: N802 (a shape, as in the fields)
        """What the value is below ``scale * code``: scale times zero point."""
        return self.scale_RG * self.zero_point_RG

    def rows(self, rows: slice, *, of: int) -> AffineParams:
        """Those of a block of rows, of so many."""
        return AffineParams(scale_RG=self.scale_RG[rows], zero_point_RG=self.zero_point_RG[rows])
