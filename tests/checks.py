"""The check of one target, for tests that have a graph and a tokenizer rather than an opened model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.parity.check import check_subject
from qwen3_export.parity.report import Report
from qwen3_export.targets.registry import TARGETS

__all__ = ["checked"]


def checked(
    target: str, path: Path, graph: Graph, tokenizer: Tokenizer, *, threads: int | None = None, **options: Any
) -> Report:
    """Open an artifact as one of the target, and check it."""
    subject = TARGETS[target].doors.open_subject(path, graph, tokenizer, threads=threads)
    return check_subject(subject, tokenizer, **options)
