"""How large a mistake must be before the bound of ``shipped`` notices it."""

from __future__ import annotations

import math
from collections.abc import Callable

from qwen3_export.parity.report import Report

__all__ = ["around_the_bound"]

BELOW, ABOVE = 0.8, 1.25


def around_the_bound(check: Callable[[float], Report], *, probe: float) -> tuple[Report, Report]:
    """The reports of a mistake that is just too small for ``shipped``, and of one that is just large enough.

    ``check`` makes the mistake in a given size (0 for none). Divergences grow with the square of a small mistake, so
    one of the size ``probe`` tells where the bound lies.
    """
    sound, wrong = check(0.0).shipped, check(probe).shipped
    assert sound.mean_kld is not None
    assert sound.bound is not None
    assert wrong.mean_kld is not None
    edge = probe * math.sqrt((sound.bound - sound.mean_kld) / (wrong.mean_kld - sound.mean_kld))
    return check(BELOW * edge), check(ABOVE * edge)
