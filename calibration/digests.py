"""Digests of a checkpoint and of tokens: they tell which calibration a result belongs to.

The digest of a checkpoint is over its config, the name, shape and number format of each weight, and the values of a few
rows. Reading all of it would take as long as an export. Fine-tunes change every row of the matrices that they train, so
a few rows tell two of them apart. The digest does not depend on where the files lie or how they are cut into shards, so
it may be recorded in results.

Resuming a run must never take results of another checkpoint. There the sizes and modification times of files are added,
so that a checkpoint that was edited in place counts as another one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.checkpoint.safetensors_file import StoredWeight
from qwen3_export.graph import Graph, Weight

__all__ = ["checkpoint_digest", "file_stamps", "run_key", "text_digest", "token_digest"]

SAMPLED_ROWS = 4


def checkpoint_digest(graph: Graph) -> str:
    """Hexadecimal SHA-256 of config, names, shapes, formats and sampled rows."""
    digest = hashlib.sha256(json.dumps(asdict(graph.config), sort_keys=True).encode())
    for weight in graph:
        digest.update(f"{weight.name} {weight.format} {list(weight.shape)}".encode())
        for row in _sampled_rows(weight):
            digest.update(np.ascontiguousarray(weight.read(slice(row, row + 1)), "<f4").tobytes())
    return digest.hexdigest()


def file_stamps(graph: Graph) -> list[str]:
    """Name, size and modification time of each file of the checkpoint, as text."""
    paths = {weight.path for weight in graph if isinstance(weight, StoredWeight)}
    stats = [(path.name, path.stat()) for path in sorted(paths)]
    return [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]


def run_key(
    kind: str,
    graph: Graph,
    *,
    windows: Sequence[NDArray[np.int64]],
    formats: Mapping[str, str],
    settings: Mapping[str, Any],
) -> str:
    """A name for a solver's run that depends on everything its results depend on; it names the folder to resume from.

    That includes the version of torch and the number of its threads, because the last bits of a product depend on them.
    """
    return text_digest(
        [
            kind,
            f"torch {torch.__version__} {torch.get_num_threads()} threads",
            checkpoint_digest(graph),
            token_digest(windows),
            json.dumps(dict(formats), sort_keys=True),
            json.dumps(dict(settings), sort_keys=True),
            *file_stamps(graph),
        ]
    )[:16]


def token_digest(windows: Sequence[NDArray[np.int64]]) -> str:
    """Hexadecimal SHA-256 of the tokens, window by window."""
    digest = hashlib.sha256()
    for window_T in windows:
        digest.update(len(window_T).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(window_T, "<i8").tobytes())
    return digest.hexdigest()


def text_digest(parts: Sequence[str]) -> str:
    """Hexadecimal SHA-256 of some texts, in order."""
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _sampled_rows(weight: Weight) -> list[int]:
    """The first row, the last, and some between; of a vector, single values."""
    rows = weight.shape[0]
    return sorted({round(i * (rows - 1) / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)})
