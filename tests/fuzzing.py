"""Damage for files: the same seed damages the same way, and code under test has little memory and time."""

from __future__ import annotations

import copy
import json
import random
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["NUMBERS", "damaged_bytes", "damaged_json", "limited"]

VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1.5, -0.0, 1e308, float("nan"), float("-inf"), 10**18, 1 << 63, -(10**40), "", "x",
    "\x1b[2J", "\u202e", "../../etc/passwd", "/etc/passwd", "a\0b", "1", [], {}, [[]], [None], [1, "a"], {"a": {}},
    {"content": 3}, ["a", "b", "c"], [0, 8], [8, 0], [1 << 40, 1 << 40], "F32", "BF16", "Z" * 5000,
)  # fmt: skip
NUMBERS = (0, 1, 2, 8, 9, 255, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 60, (1 << 63) - 1, (1 << 64) - 1)


def damaged_json(document: Any, chance: random.Random) -> bytes:
    """The document with one to three values replaced, removed, repeated or wrapped, or damaged as bytes."""
    document = json.loads(json.dumps(document))
    for _ in range(chance.randint(1, 3)):
        document = _damaged(document, chance)
    text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.05:
        text = text.replace(":", ":" + "[" * chance.choice((100, 1100, 100_000)), 1)
    data = text.encode("utf-8", "surrogatepass")
    return damaged_bytes(data, chance) if chance.random() < 0.1 else data


def damaged_bytes(data: bytes, chance: random.Random) -> bytes:
    """Some bytes flipped, overwritten with telling numbers, cut off, removed or doubled."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(found) + 1)
        kind = chance.choice(("flip", "number", "number", "number", "cut", "remove", "double"))
        if kind == "flip" and place < len(found):
            found[place] ^= 1 << chance.randrange(8)
        elif kind == "number":
            size = chance.choice((1, 4, 8, 8))
            found[place : place + size] = (chance.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
        elif kind == "cut" and chance.random() < 0.5:
            del found[place:]
        elif kind == "remove":
            del found[place : place + chance.randint(1, 16)]
        elif kind == "double":
            found[place:place] = found[place : place + chance.randint(1, 64)]
    return bytes(found)


def _damaged(node: Any, chance: random.Random) -> Any:
    """One place of the document, found by going down at random, is another."""
    if not isinstance(node, (dict, list)) or not node or chance.random() < 0.15:
        return copy.deepcopy(chance.choice(VALUES))
    keys = list(node) if isinstance(node, dict) else list(range(len(node)))
    key = chance.choice(keys)
    if chance.random() < 0.15:
        del node[key]
    elif chance.random() < 0.1 and isinstance(node, dict):
        node[chance.choice((*keys, "new", "", "\ud800", "model.norm"))] = copy.deepcopy(node[key])
    else:
        node[key] = _damaged(node[key], chance)
    return node


@contextmanager
def limited(*, megabytes: int = 1000, seconds: int = 120) -> Iterator[None]:
    """MemoryError beyond so much more memory than now, TimeoutError after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} seconds")

    handler = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        with _limited_memory(megabytes):
            yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, handler)


@contextmanager
def _limited_memory(megabytes: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
