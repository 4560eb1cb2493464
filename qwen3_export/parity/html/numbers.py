"""Numbers as people read them."""

from __future__ import annotations

import math

__all__ = ["bytes_text", "percent", "power_of_ten", "scientific"]

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
THIN_SPACE = "\u202f"  # narrow, and not broken at


def scientific(value: float | None, *, digits: int = 3) -> str:
    """``0.00483``, ``1.43 × 10⁻¹²``, a dash for what was not measured."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = power_of_ten(int(exponent))
    return power if mantissa == "1" else f"{mantissa}{THIN_SPACE}×{THIN_SPACE}{power}"


def power_of_ten(exponent: int) -> str:
    return "1" if exponent == 0 else "10" + str(exponent).translate(RAISED)


def percent(value: float | None, *, digits: int = 2) -> str:
    """``99.22 %``; 100 only where it is meant."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    shown = f"{100 * value:.{digits}f}"
    if value < 1 and float(shown) == 100:
        shown = f"> {100 - 10**-digits:.{digits}f}"
    return f"{shown}{THIN_SPACE}%"


def bytes_text(size: float) -> str:
    """Powers of 1000, as file managers and the hub count."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g}{THIN_SPACE}{unit}"
        size /= 1000
    return f"{size:.3g}{THIN_SPACE}GB" if size < 1000 else f"{size:,.0f}{THIN_SPACE}GB"
