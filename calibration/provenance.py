"""Metadata on how stored values were chosen, as strings: artifacts that are folders carry it."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export import __version__
from qwen3_export.errors import CheckpointError
from qwen3_export.files.json_file import parse_json
from qwen3_export.quantizers.transforms import Fold, parse_place, place_text

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Solution
    from qwen3_export.graph import Graph

__all__ = [
    "PREFIX",
    "allocation_or_none",
    "calibration_or_none",
    "describe",
    "read_calibration_record",
    "read_digests_record",
    "read_scales_record",
    "record_bytes",
    "recorded",
    "tuning_or_none",
]

PREFIX = "qwen3_export."

# What the record of a solver and of tuning takes at most, and that of each weight beside its name twice.
RECORD_BYTES, BYTES_A_WEIGHT = 4096, 64


def describe(
    *,
    model: str,
    recipe: str,
    solution: Solution | None,
    allocation: Mapping[str, Any] | None = None,
    **more: str,
) -> dict[str, str]:
    """The metadata of an export; ``allocation`` is the record of how formats were chosen, where they were."""
    found = {"version": __version__, "model": model, "recipe": recipe, "method": "rtn", **more}
    if solution is not None:
        calibration = {"dataset": solution.dataset, "sha256": solution.sha256, "tokens": solution.num_tokens}
        scales = {
            place_text(place): base64.b64encode(np.ascontiguousarray(scale, "<f4").tobytes()).decode()
            for place, scale in solution.scales.items()
        }
        found["method"] = solution.method
        found["calibration"] = json.dumps({**calibration, "tensor_errors": dict(solution.errors)})
        found |= {"scales": json.dumps(scales)} if scales else {}
        found |= {"value_digests": json.dumps(dict(solution.digests))} if solution.digests else {}
        found |= {} if solution.tuning is None else {"tuning": json.dumps(dict(solution.tuning))}
    if allocation is not None:
        found["allocation"] = json.dumps(dict(allocation))
    return {PREFIX + key: value for key, value in found.items()}


def record_bytes(graph: Graph) -> int:
    """The most bytes that ``describe`` adds for a solver: an error and a digest for each weight, and its text."""
    return RECORD_BYTES + sum(2 * len(weight.name) + BYTES_A_WEIGHT for weight in graph)


def read_calibration_record(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The calibration text and the error of each weight, from an artifact's metadata; None if there is no record."""
    text = metadata.get(PREFIX + "calibration")
    if text is None:
        return None
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{PREFIX}calibration of the artifact cannot be read ({error}); export it again"
        ) from error


def allocation_or_none(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """How formats were chosen; None where they were the recipe's, or the record cannot be read."""
    return _record_or_none(metadata, "allocation")


def tuning_or_none(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """How norms and scales were tuned; None where they were not, or the record cannot be read."""
    return _record_or_none(metadata, "tuning")


def recorded(metadata: Mapping[str, str], key: str) -> str:
    """The metadata under a key such as ``recipe``; ``unknown`` if there is none, or no text."""
    found: object = metadata.get(PREFIX + key)
    return found if isinstance(found, str) else "unknown"


def calibration_or_none(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """``read_calibration_record`` for a report: also None if the record cannot be read."""
    try:
        return read_calibration_record(metadata)
    except CheckpointError:
        return None


def read_scales_record(metadata: Mapping[str, str]) -> dict[Fold, NDArray[np.float32]]:
    """The scales that were moved before rounding; CheckpointError if they cannot be read."""
    try:
        found = json.loads(metadata.get(PREFIX + "scales", "{}"))
        return {
            parse_place(place): np.frombuffer(base64.b64decode(value, validate=True), "<f4")
            for place, value in found.items()
        }
    except (TypeError, ValueError, AttributeError, RecursionError, binascii.Error) as error:
        raise CheckpointError(f"{PREFIX}scales of the artifact cannot be read ({error}); export it again") from error


def read_digests_record(metadata: Mapping[str, str]) -> dict[str, str]:
    """The digests of solved values by ``digest_name``; empty where none are recorded, or they cannot be read."""
    try:
        found = json.loads(metadata.get(PREFIX + "value_digests", "{}"))
    except (TypeError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: digest for name, digest in found.items() if isinstance(digest, str)}


def _record_or_none(metadata: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    try:
        found = parse_json(str(metadata.get(PREFIX + key, "")).encode())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
