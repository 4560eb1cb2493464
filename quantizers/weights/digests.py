"""Digests of stored values: what a solver chose is recorded when it is written, and recognised when it is read.

The error of a solved weight has no bound that follows from its format alone: a solver moves weights as far as their
inputs never show. So the file records a digest of the values that were to be stored. It is taken of the fp32 values
that the codes stand for, and not of bytes, so that it is the same for every target and also covers the decoding. All
experts of a layer share one, in the order of their numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import numpy as np

from qwen3_export.graph import Graph, Role, Weight, module_name
from qwen3_export.parallel import default_threads, run_jobs

__all__ = ["ValueDigest", "digest_name", "value_digests"]

DIGITS = 16
VALUES_PER_BLOCK = 1 << 20


class ValueDigest:
    """A digest of rows of values that come one block after the other."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, values: np.ndarray) -> None:
        """Take the next rows. Zeros have no sign here."""
        self._hash.update(np.ascontiguousarray(values + np.float32(0), "<f4").tobytes())

    def text(self) -> str:
        """The first hexadecimal digits of what was taken."""
        return self._hash.hexdigest()[:DIGITS]


def digest_name(role: Role) -> str:
    """The name under which a weight's digest is recorded: its own, or that of all experts together."""
    if role.expert is None:
        return module_name(role)
    return f"model.layers.{role.layer}.mlp.experts.{role.kind.value}"


def value_digests(graph: Graph, names: Iterable[str]) -> Mapping[str, str]:
    """The digest of every weight that is named, by ``digest_name``."""
    wanted = set(names)
    groups: dict[str, list[Weight]] = {}
    for weight in graph:
        if weight.name in wanted:
            groups.setdefault(digest_name(weight.role), []).append(weight)
    found = dict.fromkeys(groups, "")

    def take(name: str) -> None:
        digest = ValueDigest()
        for weight in groups[name]:
            for rows in _row_blocks(weight):
                digest.add(weight.read(rows))
        found[name] = digest.text()

    run_jobs(take, groups, threads=default_threads())
    return MappingProxyType(found)


def _row_blocks(weight: Weight) -> Iterator[slice]:
    step = max(1, VALUES_PER_BLOCK // math.prod(weight.shape[1:]))
    for start in range(0, weight.shape[0], step):
        yield slice(start, min(start + step, weight.shape[0]))
