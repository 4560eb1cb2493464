"""Whether an existing file is one that this toolkit wrote, and may be replaced by a newer one of its kind.

Each function looks at a file's content, never at its name: a report written to ``notes.txt`` must not cost anybody
their notes. A file that cannot be read counts as somebody else's.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

__all__ = [
    "HTML_MARKER",
    "JUNIT_NAME",
    "STATISTICS_FORMAT",
    "is_allocation",
    "is_gguf_model",
    "is_html_report",
    "is_imatrix",
    "is_junit",
    "is_lint",
    "is_modelfile",
    "is_report",
    "is_statistics",
    "is_transcript",
    "is_work_file",
]

# Written into every page, every JUnit file and every file of statistics.
HTML_MARKER = "qwen3-export parity"
JUNIT_NAME = "qwen3-export"
STATISTICS_FORMAT = "qwen3-export statistics 1"

# The field general.type of a GGUF file: its name, the number of the type string, the length and the value.
IMATRIX_TYPE = b"general.type" + struct.pack("<IQ", 8, 7) + b"imatrix"

# Enough to find a marker in, and more than any report has.
HEAD_BYTES, DOCUMENT_BYTES = 4096, 64 << 20


def is_allocation(path: Path) -> bool:
    """A saved choice of formats, in JSON."""
    return _has_keys(path, "kind", "formats", "shapes", "measured_by_recipe")


def is_gguf_model(path: Path) -> bool:
    """A GGUF file that is no importance matrix."""
    return _head(path).startswith(b"GGUF") and not is_imatrix(path)


def is_imatrix(path: Path) -> bool:
    """An importance matrix as a GGUF file, which says so at its head."""
    head = _head(path)
    return head.startswith(b"GGUF") and IMATRIX_TYPE in head


def is_report(path: Path) -> bool:
    """A parity report in JSON."""
    return _has_keys(path, "artifact", "target", "verdict", "end_to_end", "decode")


def is_html_report(path: Path) -> bool:
    """A page of parity reports."""
    return f'<meta name="generator" content="{HTML_MARKER}">'.encode() in _head(path)


def is_junit(path: Path) -> bool:
    """Parity reports as JUnit XML."""
    return f'<testsuites name="{JUNIT_NAME}"'.encode() in _head(path)


def is_lint(path: Path) -> bool:
    """The findings of ``lint`` in JSON."""
    return _has_keys(path, "artifact", "target", "consumers", "findings", "digests")


def is_modelfile(path: Path) -> bool:
    """A Modelfile for Ollama that begins as ours do."""
    return _head(path).startswith(b"FROM ./")


def is_statistics(path: Path) -> bool:
    """Statistics of a calibration run, in safetensors."""
    head = _head(path)
    return head[8:9] == b"{" and f'"format":"{STATISTICS_FORMAT}"'.encode() in head


def is_transcript(path: Path) -> bool:
    """The transcript beside a Core ML package, in JSON."""
    return _has_keys(path, "tokens", "chunks", "best", "logits")


def is_work_file(_path: Path) -> bool:
    """Any file in the folder of unfinished work of one run, whose name is a digest: nobody else writes there."""
    return True


def _has_keys(path: Path, *keys: str) -> bool:
    document = _json(path)
    return isinstance(document, dict) and all(key in document for key in keys)


def _json(path: Path) -> Any:
    data = _head(path, DOCUMENT_BYTES)
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _head(path: Path, count: int = HEAD_BYTES) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
