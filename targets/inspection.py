"""What ``inspect`` shows of an artifact, and how targets put it into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX, read_calibration_record

__all__ = ["counted", "origin", "output_errors", "template_beside"]


def counted(items: Iterable[str]) -> str:
    """``38 Q4_K, 25 F32``, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in Counter(items).most_common())


def origin(metadata: Mapping[str, object]) -> dict[str, object]:
    """What an export of ours recorded: model, recipe, method, calibration."""
    return {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}


def output_errors(metadata: Mapping[str, str]) -> Iterator[str]:
    """A line for each weight whose output error a solver recorded."""
    for name, error in (read_calibration_record(metadata) or {}).get("tensor_errors", {}).items():
        yield f"output error {error:.2e}  {name}"


def template_beside(folder: Path) -> str | None:
    """The chat template that lies in a folder."""
    path = folder / "chat_template.jinja"
    return path.read_text(encoding="utf-8") if path.exists() else None
