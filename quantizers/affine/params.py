"""Scales and zero points: what a weight in an affine integer format stores besides its codes.

Shapes: # R rows  G groups a row

A value is ``scale * (code - zero_point)``. Codes and zero points are signed here, -8 … 7 for four bits. Files that
count from 0 add half the range to both, which changes no value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["AffineParams"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineParams:
    """Scales and zero points of R rows. Scales are float32 arrays that hold numbers of the format's scale dtype; zero
    points are 0 in symmetric formats.
    """

    scale_RG: NDArray[np.float32]
    zero_point_RG: NDArray[np.int8]

    @property
    def offset_RG(self) -> NDArray[np.float32]:  # noqa: N802 (a shape, as in the fields)
        """Scale times zero point: a value is ``scale * code - offset``."""
        return self.scale_RG * self.zero_point_RG

    def rows(self, rows: slice, *, of: int) -> AffineParams:
        """The parameters of a block of rows; ``of`` is the number of all rows."""
        return AffineParams(scale_RG=self.scale_RG[rows], zero_point_RG=self.zero_point_RG[rows])
