"""A model that is ready to generate: its runtime, and the tokenizer and template that go with it."""

from __future__ import annotations

from dataclasses import dataclass

from qwen3_export.generation.speech import Speech
from qwen3_export.generation.stepper import Runtime

__all__ = ["Opened"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What a target's ``generate`` gives, or ``generation.reference.open_checkpoint``."""

    runtime: Runtime
    speech: Speech
