"""Write a Modelfile, with which Ollama runs the exported file: ``ollama create NAME -f Modelfile``.

By default Ollama uses a small context, and it does not evaluate Jinja. So the Modelfile gives the dialogue format in
Go's template language (docs/modelfile.md and docs/template.md of Ollama), the sampling defaults, and a larger context.
Checkpoints whose template is not ChatML get no TEMPLATE, and Ollama uses the template in the file.
"""

from __future__ import annotations

from pathlib import Path

from qwen3_export.checkpoint.model import Model
from qwen3_export.checkpoint.tokenizer import GenerationDefaults

__all__ = ["build_modelfile"]

CONTEXT = 32768

DIALOGUE = """{{- range .Messages }}<|im_start|>{{ .Role }}
{{ .Content }}<|im_end|>
{{ end }}<|im_start|>assistant
"""
# An empty thought tells Qwen3 not to think.
WITHOUT_THINKING = "{{ if and .IsThinkSet (not .Think) }}<think>\n\n</think>\n\n{{ end }}"


def build_modelfile(model: Model, gguf: Path) -> str:
    """The text of a Modelfile for the file ``gguf`` in the same folder."""
    lines = [f"FROM ./{gguf.name}", ""]
    template = _template(model.tokenizer.chat_template)
    if template is not None:
        lines += [f'TEMPLATE """{template}"""', ""]
    lines += [f"PARAMETER {name} {value}" for name, value in _parameters(model)]
    return "\n".join(lines) + "\n"


def _template(chat_template: str | None) -> str | None:
    if chat_template is None or "<|im_start|>" not in chat_template:
        return None
    return DIALOGUE + (WITHOUT_THINKING if "enable_thinking" in chat_template else "")


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
