"""Numbers as text for people: powers of ten, percentages, sizes."""

from __future__ import annotations

import math

__all__ = ["bytes_text", "percent", "power_of_ten", "scientific"]

RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
THIN_SPACE = "\u202f"  # narrow, and no line breaks there


def scientific(value: float | None, *, digits: int = 3) -> str:
    """``0.00483`` or ``1.43 × 10⁻¹²``; a dash for None, which stands for a number that was not measured."""
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
    """``10⁻³``, and ``1`` for the exponent 0."""
    return "1" if exponent == 0 else "10" + str(exponent).translate(RAISED)


def percent(value: float | None, *, digits: int = 2) -> str:
    """``99.22 %`` for a share of 0.9922; a share below 1 is never rounded up to 100 %."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    shown = f"{100 * value:.{digits}f}"
    if value < 1 and float(shown) == 100:
        shown = f"> {100 - 10**-digits:.{digits}f}"
    return f"{shown}{THIN_SPACE}%"


def bytes_text(size: float) -> str:
    """``5.49 MB``, in powers of 1000 as file managers and the Hugging Face hub count."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g}{THIN_SPACE}{unit}"
        size /= 1000
    return f"{size:.3g}{THIN_SPACE}GB" if size < 1000 else f"{size:,.0f}{THIN_SPACE}GB"
