"""A checkpoint with all that an export needs: graph, tokenizer, and the fields of its model card.

Of the card (README.md) only the YAML at its head is read (licence, base model, languages, tags), and not its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.hub import resolve_model
from qwen3_export.checkpoint.tokenizer import Tokenizer, load_tokenizer
from qwen3_export.graph import Graph

__all__ = ["Model", "load"]

FRONT_MATTER = re.compile(r"---\r?\n(.*?)\r?\n---\s", re.DOTALL)
CARD_LENGTH = 1 << 20
CHECKPOINT_SUFFIXES = (".safetensors", ".json", ".jinja", ".txt", ".md")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An opened checkpoint; ``source`` is the hub id or the folder's name, ``card`` the fields of the model card."""

    graph: Graph
    tokenizer: Tokenizer
    folder: Path
    source: str
    card: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def name(self) -> str:
        return self.graph.name

    def files(self) -> list[Path]:
        """The checkpoint's own files, which no output may replace."""
        return [path for path in self.folder.iterdir() if path.suffix in CHECKPOINT_SUFFIXES and path.is_file()]


def load(spec: str | Path, *, revision: str | None = None, offline: bool = False) -> Model:
    """Open a model by folder, hub id, short name, or ``demo``; weights are not read.

    ``revision`` is a branch, tag or commit on the hub; ``offline`` forbids downloads. Raises an ExportError that says
    in one sentence what is wrong with the model, and what to do.
    """
    resolved = resolve_model(str(spec), revision=revision, offline=offline)
    graph = open_checkpoint(resolved.folder, name=resolved.name)
    return Model(
        graph=graph,
        tokenizer=load_tokenizer(resolved.folder, graph.config),
        folder=resolved.folder,
        source=resolved.hub_id or resolved.name,
        card=_read_card(resolved.folder / "README.md"),
    )


def _read_card(path: Path) -> Mapping[str, Any]:
    """The YAML at the head of a model card; empty if there is none that can be read."""
    import yaml

    try:
        with path.open(encoding="utf-8") as file:
            block = FRONT_MATTER.match(file.read(CARD_LENGTH))
        fields = yaml.safe_load(block.group(1)) if block else {}
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError):  # nothing depends on what a card says
        return MappingProxyType({})
    return MappingProxyType(fields if isinstance(fields, dict) else {})
