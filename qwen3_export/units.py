"""Sizes, counts and durations as people write them."""

from __future__ import annotations

from qwen3_export.errors import OptionError

__all__ = ["human_count", "human_duration", "human_size", "parse_size"]

SIZE_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def human_size(num_bytes: float) -> str:
    """``5.49 MB``, ``1.11 GB``: powers of 1000, as file managers and the hub count."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.2f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def human_count(count: float) -> str:
    """``8.0M``, ``1.7B`` parameters."""
    for unit in ("", "K", "M"):
        if count < 1000:
            return f"{count:.1f}{unit}" if unit else f"{count:.0f}"
        count /= 1000
    return f"{count:.1f}B"


def human_duration(seconds: float) -> str:
    """``about 40 s``, ``about 12 min``, ``about 3.5 h``."""
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"


def parse_size(size: int | str, *, parameter: str) -> int:
    """Bytes of ``2G``, ``500M`` or a plain number; units are powers of 1000.

    Raises OptionError, which names ``parameter``, for what is no size or not positive.
    """
    text = str(size).strip().upper()
    digits = text.rstrip("KMGB")
    try:
        num_bytes = int(float(digits) * SIZE_UNITS[text[len(digits) :]])
    except (KeyError, ValueError, OverflowError) as error:
        raise OptionError(f"`{parameter}` {size}: not a size; write 2G or 500M") from error
    if num_bytes <= 0:
        raise OptionError(f"`{parameter}` {size}: must be positive")
    return num_bytes
