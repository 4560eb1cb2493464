"""Find in seconds what would stop the programs that load an artifact. Nothing is run and no weight is read.

Each target says which consumers its artifacts have, and what each of them needs; what every consumer needs (names,
shapes, hyperparameters, end tokens, tokenizer and template as in the checkpoint) is the check's own list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.targets.target import Target

__all__ = ["Finding", "Lint", "lint_artifact"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One sentence, and whom it concerns; an error keeps them from loading or from computing what they should."""

    text: str
    consumers: tuple[str, ...]
    is_error: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Lint:
    """All findings; ``digests`` are the SHA-256 of the checkpoint's documents that an artifact must carry."""

    target: str
    consumers: tuple[str, ...]
    findings: tuple[Finding, ...]
    digests: Mapping[str, str]

    def errors_of(self, consumer: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.is_error and consumer in finding.consumers]

    @property
    def is_clean(self) -> bool:
        return not any(finding.is_error for finding in self.findings)


def lint_artifact(target: Target, path: Path, model: Model) -> Lint:
    """Look at an artifact; ExportError for what cannot be opened at all."""
    consumers, findings = target.doors.lint(path, model)
    return Lint(target=target.name, consumers=consumers, findings=tuple(findings), digests=_digests(model))


def _digests(model: Model) -> dict[str, str]:
    found = {"tokenizer.json": (model.folder / "tokenizer.json").read_bytes()}
    if model.tokenizer.chat_template is not None:
        found["chat template"] = model.tokenizer.chat_template.encode("utf-8")
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}
