"""``qwen3-export inspect``: what is in a checkpoint or in an artifact, without running it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3_export.cli.options import OfflineOption, RevisionOption
from qwen3_export.files.shown import escaped, on_one_line
from qwen3_export.targets.registry import is_artifact, target_of
from qwen3_export.units import human_count

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.targets.target import Inspection

EPILOG = """Examples:

  qwen3-export inspect demo

  qwen3-export inspect demo-q4_k_m.gguf --tensors

  qwen3-export inspect demo-onnx-int4
"""


def inspect(
    subject: Annotated[str, typer.Argument(help="A model, as for --model, or an artifact.", metavar="MODEL|ARTIFACT")],
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    template: Annotated[bool, typer.Option("--template", help="Print the chat template.")] = False,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Show config, sizes, types, metadata, end tokens and how the file was made."""
    if is_artifact(subject):
        path = Path(subject)
        _show(target_of(path).doors.inspect(path), tensors=tensors, template=template)
        return
    from qwen3_export.checkpoint.model import load

    _inspect_model(load(subject, revision=revision, offline=offline), tensors=tensors, template=template)


def _show(found: Inspection, *, tensors: bool, template: bool) -> None:
    _rows({key: _shortened(value) for key, value in found.facts.items()})
    print(f"chat template: {'none' if found.template is None else f'{len(found.template)} characters'}")
    if tensors:
        for line in found.tensors():
            _line(line)
    if template and found.template is not None:
        _show_template(found.template)


def _inspect_model(model: Model, *, tensors: bool, template: bool) -> None:
    from qwen3_export.targets.inspection import counted

    graph, tokenizer = model.graph, model.tokenizer
    _rows(
        {
            "model": model.name,
            "folder": model.folder,
            "parameters": f"{human_count(graph.num_parameters)} ({graph.num_parameters:,})",
            "weights": counted(weight.format for weight in graph),
            **{field.name: getattr(graph.config, field.name) for field in dataclasses.fields(graph.config)},
            "tokens known": f"{tokenizer.num_tokens} of {graph.config.vocab_size}",
            "end tokens": ", ".join(f"{i} {tokenizer.decode([i])}" for i in tokenizer.generation.eos_token_ids),
            "chat template": "none"
            if tokenizer.chat_template is None
            else f"{len(tokenizer.chat_template)} characters",
            "sampling": _sampling(tokenizer.generation),
        }
    )
    for note in graph.notes:
        _line(f"note: {note}")
    if tensors:
        for weight in graph:
            _line(f"{weight.format:6} {list(weight.shape)!s:20} {weight.name}")
    if template and tokenizer.chat_template is not None:
        _show_template(tokenizer.chat_template)


def _show_template(template: str) -> None:
    """The template exactly as it is into a pipe or a file; on a terminal without characters that act on it."""
    print(escaped(template) if sys.stdout.isatty() else template)


def _sampling(generation: Any) -> str:
    stated = {name: getattr(generation, name) for name in ("temperature", "top_k", "top_p", "min_p")}
    return ", ".join(f"{name} {value}" for name, value in stated.items() if value is not None) or "none stated"


def _shortened(value: object, width: int = 100) -> str:
    if isinstance(value, list):
        return f"{len(value)} items: {', '.join(_shortened(str(item), 32) for item in value[:4])}, …"
    text = str(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def _rows(rows: Mapping[str, object]) -> None:
    width = max(map(len, rows), default=0)
    for key, value in rows.items():
        _line(f"{key:{width}}  {value}")


def _line(text: str) -> None:
    """One line of the result: whatever a file says, it stays one, and acts on no terminal."""
    print(on_one_line(text))


inspect.__doc__ = f"{inspect.__doc__}\n\n{EPILOG}"
