"""JSON documents of checkpoints and artifacts, read without trusting them.

Files come from the internet: a document may be damaged, nested without end, or hold a list where a number belongs. Each
such fault is one sentence (CheckpointError) that names the file and the field.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen3_export.errors import CheckpointError
from qwen3_export.files.shown import shown

__all__ = ["Fields", "object_in", "parse_json", "read_json"]

# Tokenizers have some ten megabytes; larger documents are damaged, or meant to fill the memory.
MAX_BYTES = 100_000_000
# Several times what the largest tokenizers hold; beyond this, a small file becomes gigabytes of objects.
MAX_CONTAINERS, MAX_STRINGS = 2_000_000, 4_000_000


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object. Raises CheckpointError if it is missing, damaged or something else."""
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise CheckpointError(f"{path}: has {size:,} bytes, too many for a JSON file; download it again")
        document = parse_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; download it, or copy it from where the rest came from") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return document


def parse_json(data: bytes, *, has_unique_keys: bool = False) -> Any:
    """Parse JSON in UTF-8; ``has_unique_keys`` refuses objects that have a key twice.

    Raises ValueError for what is no JSON, would fill the memory, is nested too deeply, or spells half of a character.
    """
    if data.count(b"{") + data.count(b"[") > MAX_CONTAINERS or data.count(b'"') > 2 * MAX_STRINGS:
        raise ValueError("it has too many values")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique if has_unique_keys else None)
        if b"\\u" in data:
            json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("it spells half of a character") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return document


def object_in(document: object, *names: str) -> dict[str, Any]:
    """The object under these names, one within the other; an empty one where there is no object."""
    for name in names:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, dict) else {}


class Fields:
    """The fields of one JSON object, each read as the type that it must have.

    Every method returns None for a field that is missing or null, and raises CheckpointError for one of another type.
    ``path`` is the file, for messages.
    """

    def __init__(self, document: Mapping[str, Any], path: Path) -> None:
        self._document, self.path = document, path

    def has(self, name: str) -> bool:
        """Whether the field is there, be it null."""
        return name in self._document

    def integer(self, name: str) -> int | None:
        value = self._document.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(name, "a whole number")

    def number(self, name: str) -> float | None:
        """An integer or a float, but neither NaN nor infinite; returned as it is stated."""
        value = self._document.get(name)
        if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)):
            return value
        raise self._wrong(name, "a number")

    def boolean(self, name: str) -> bool | None:
        value = self._document.get(name)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(name, "true or false")

    def text(self, name: str) -> str | None:
        value = self._document.get(name)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(name, "text")

    def object(self, name: str) -> dict[str, Any] | None:
        value = self._document.get(name)
        if value is None or isinstance(value, dict):
            return value
        raise self._wrong(name, "an object")

    def items(self, name: str) -> list[Any] | None:
        value = self._document.get(name)
        if value is None or isinstance(value, list):
            return value
        raise self._wrong(name, "a list")

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A list of objects; empty where the field is missing."""
        found = self.items(name) or []
        if all(isinstance(item, dict) for item in found):
            return found
        raise self._wrong(name, "a list of objects")

    def integers(self, name: str) -> list[int]:
        """A list of whole numbers, or one of them; empty where the field is missing."""
        value = self._document.get(name)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if all(isinstance(item, int) and not isinstance(item, bool) for item in found):
            return found
        raise self._wrong(name, "a whole number, or a list of them")

    def _wrong(self, name: str, wanted: str) -> CheckpointError:
        value = shown(self._document.get(name))
        return CheckpointError(f"{self.path}: {name} is {value}, where {wanted} belongs; download the file again")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"it has the key {shown(twice)} twice")
    return document
