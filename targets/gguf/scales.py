"""Scales that were moved before rounding (AWQ), stored as metadata of a GGUF file.

A file whose norms and columns were rescaled computes the same function from other numbers. A program that compares its
tensors with the checkpoint's needs the scales. llama.cpp does not, and ignores these keys:

    qwen3_export.scales.places   "input_layernorm.3", "up_proj.3.17" (layer 3, expert 17), …
    qwen3_export.scales.values   fp32, little-endian, in base64, one string a place

They are strings because readers parse an array of numbers one by one, and a mixture of experts has millions.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import CheckpointError
from qwen3_export.quantizers.transforms import Fold, parse_place, place_text
from qwen3_export.targets.gguf.container import MetaType, MetaValue

__all__ = ["read_scales", "scales_metadata"]

PLACES, VALUES = "qwen3_export.scales.places", "qwen3_export.scales.values"

Scales = Mapping[Fold, NDArray[np.float32]]


def scales_metadata(scales: Scales) -> dict[str, MetaValue]:
    """The metadata for some scales; empty if nothing was moved."""
    if not scales:
        return {}
    values = [base64.b64encode(np.ascontiguousarray(scale, "<f4").tobytes()).decode() for scale in scales.values()]
    return {
        PLACES: MetaValue(MetaType.STRING, [place_text(place) for place in scales], is_array=True),
        VALUES: MetaValue(MetaType.STRING, values, is_array=True),
    }


def read_scales(metadata: Mapping[str, Any]) -> Scales:
    """The scales that a file records. Raises CheckpointError if they cannot be read."""
    places, values = metadata.get(PLACES, []), metadata.get(VALUES, [])
    try:
        return {
            parse_place(place): np.frombuffer(base64.b64decode(value, validate=True), "<f4")
            for place, value in zip(places, values, strict=True)
        }
    except (TypeError, ValueError, binascii.Error) as error:
        raise CheckpointError(f"{PLACES} and {VALUES} of the file cannot be read ({error}); export it again") from error
