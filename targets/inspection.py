"""What ``inspect`` shows of an artifact, and how targets put it into words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX, read_calibration_record
from qwen3_export.checkpoint.template import read_template
from qwen3_export.files.shown import shown

__all__ = ["counted", "origin", "output_errors", "recorded_errors", "template_beside"]


def counted(items: Iterable[str]) -> str:
    """``38 Q4_K, 25 F32``, the most frequent first."""
    return ", ".join(f"{count} {name}" for name, count in Counter(items).most_common())


def origin(metadata: Mapping[str, object]) -> dict[str, object]:
    """What an export of ours recorded: model, recipe, method, calibration."""
    return {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}


def recorded_errors(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """The output error of each weight, as text, where a solver recorded it; nothing where the record is damaged."""
    errors = (read_calibration_record(metadata) or {}).get("tensor_errors")
    if not isinstance(errors, dict):
        return {}
    return {name: f"{error:.2e}" if isinstance(error, float) else shown(error) for name, error in errors.items()}


def output_errors(metadata: Mapping[str, str]) -> Iterator[str]:
    """A line for each weight whose output error a solver recorded."""
    for name, error in recorded_errors(metadata).items():
        yield f"output error {error}  {name}"


def template_beside(folder: Path) -> str | None:
    """The chat template that lies in a folder."""
    template = read_template(folder, {})
    return None if template is None else template.text
