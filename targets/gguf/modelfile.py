"""Write a Modelfile, with which Ollama runs the exported file: ``ollama create NAME -f Modelfile``.

It names the file (each part of a split one, which Ollama merges), what a reply stops at, the sampling defaults, and a
context larger than Ollama's own. There is no TEMPLATE in it: what Ollama's own template language can say is not what
the checkpoint's template says (tools, thoughts that are left out of the history, a default system message), and without
one Ollama goes by the template in the file, as llama.cpp does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3_export.checkpoint.model import Model
from qwen3_export.checkpoint.tokenizer import GenerationDefaults

__all__ = ["FROM", "build_modelfile"]

FROM = "FROM ./"
CONTEXT = 32768


def build_modelfile(model: Model, parts: Sequence[Path]) -> str:
    """The text of a Modelfile for the files ``parts`` in the same folder."""
    lines = [*(f"{FROM}{part.name}" for part in parts), ""]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(model)]
    return "\n".join(lines) + "\n"


def _parameters(model: Model) -> list[tuple[str, object]]:
    ends = [model.tokenizer.decode([token]) for token in model.tokenizer.generation.eos_token_ids]
    context = min(CONTEXT, model.graph.config.context_length)
    return [*[("stop", f'"{end}"') for end in ends], *_sampling(model.tokenizer.generation), ("num_ctx", context)]


def _sampling(generation: GenerationDefaults) -> list[tuple[str, object]]:
    stated = [
        ("temperature", generation.temperature),
        ("top_k", generation.top_k),
        ("top_p", generation.top_p),
        ("min_p", generation.min_p),
    ]
    return [(name, value) for name, value in stated if value is not None]
