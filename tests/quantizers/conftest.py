"""Weights to quantize: some of the demo model's, and random ones with the tails that break a scale search."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open

import qwen3_export

Values = NDArray[np.float32]

ROWS = 32
"""Rows taken of each tensor: enough blocks for an average, few enough for llama.cpp's slow searches."""


@pytest.fixture(scope="session")
def demo_weights() -> dict[str, Values]:
    """The first rows of every matrix of the demo model whose rows 256 divides, in float32."""
    path = Path(qwen3_export.__file__).parent / "data" / "demo" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
        return {
            name: np.ascontiguousarray(tensor[:ROWS].float().numpy())
            for name, tensor in tensors.items()
            if len(tensor.get_shape()) == 2 and tensor.get_shape()[1] % 256 == 0
        }


@pytest.fixture(scope="session")
def random_weights() -> dict[str, Values]:
    """Normal and heavy-tailed: Student's t with 3 and 2 degrees of freedom."""
    random = np.random.default_rng(7)
    return {
        "normal": (random.standard_normal((ROWS, 1024)) * 0.02).astype(np.float32),
        "heavy": (random.standard_t(3, (ROWS, 1024)) * 0.02).astype(np.float32),
        "heavier": (random.standard_t(2, (ROWS, 1024)) * 0.02).astype(np.float32),
    }
