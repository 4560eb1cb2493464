"""Names and tables shared by the code that writes graphs and the code that reads them; needs no ONNX package."""

from __future__ import annotations

import numpy as np

from qwen3_export.config import Qwen3Config
from qwen3_export.reference.probe import Site
from qwen3_export.rope import rotation

__all__ = ["COS_CACHE", "SIN_CACHE", "rope_caches", "site_name"]

COS_CACHE, SIN_CACHE = "cos_cache", "sin_cache"


def rope_caches(config: Qwen3Config, *, length: int, float_type: str) -> dict[str, np.ndarray]:
    """Cosine and sine of every position and pair, [length, head_dim / 2]."""
    turn = rotation(config, start=0, count=length)
    dtype = np.dtype("<f4" if float_type == "F32" else "<f2")
    return {COS_CACHE: turn.cos.numpy().astype(dtype), SIN_CACHE: turn.sin.numpy().astype(dtype)}


def site_name(site: Site) -> str:
    """The graph value that corresponds to a site of the reference."""
    return f"model.{site.place.value}" if site.layer is None else f"model.layers.{site.layer}.{site.place.value}"
