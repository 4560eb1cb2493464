"""``qwen3-export quants``: the recipes, and what each would cost a model."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3_export.cli.console import say
from qwen3_export.cli.options import OfflineOption, RevisionOption
from qwen3_export.targets.registry import find_target
from qwen3_export.units import human_count, human_size

EPILOG = """Examples:

  qwen3-export quants

  qwen3-export quants gguf --model Qwen3-1.7B

  qwen3-export quants onnx
"""


def quants(
    target: Annotated[str, typer.Argument(help="The target whose recipes to list.")] = "gguf",
    model: Annotated[str, typer.Option("--model", "-m", help="The model to forecast for; see gguf --model.")] = "demo",
    context_length: Annotated[
        int, typer.Option("--context-length", help="Tokens of context in the memory forecast.", min=1)
    ] = 4096,
    context: Annotated[int | None, typer.Option("--context", hidden=True, min=1)] = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """List recipes with bits per weight, file size and a forecast of the memory that running takes."""
    from qwen3_export.checkpoint.model import load

    doors = find_target(target).doors
    opened = load(model, revision=revision, offline=offline)
    config = opened.graph.config
    tokens = min(context or context_length, config.context_length)
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens
    say(
        f"{opened.name}: {human_count(opened.graph.num_parameters)} parameters; memory is weights and the KV cache "
        f"of {tokens} tokens"
    )
    print(f"{'recipe':9} {'bits':>5} {'size':>10} {'memory':>10}  what it is")
    for row in doors.costs(opened):
        memory = row.num_bytes + row.bytes_per_cached_value * values
        print(
            f"{row.name:9} {row.bits_per_weight:5.2f} {human_size(row.num_bytes):>10} {human_size(memory):>10}  "
            f"{row.description}"
        )


quants.__doc__ = f"{quants.__doc__}\n\n{EPILOG}"
