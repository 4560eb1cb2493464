"""``qwen3-export quants``: the recipes, and what each would cost a model."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen3_export.cli.console import human_count, human_size, say
from qwen3_export.cli.options import OfflineOption, RevisionOption
from qwen3_export.errors import ExportError

EPILOG = """Examples:

  qwen3-export quants

  qwen3-export quants gguf --model Qwen3-1.7B
"""

TARGETS = ("gguf",)


def quants(
    target: Annotated[str, typer.Argument(help="The target whose recipes to list.")] = "gguf",
    model: Annotated[str, typer.Option("--model", "-m", help="The model to forecast for; see gguf --model.")] = "demo",
    context: Annotated[int, typer.Option("--context", help="Tokens of context in the memory forecast.", min=1)] = 4096,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """List recipes with bits per weight, file size and a forecast of the memory that running takes."""
    from qwen3_export.model import load
    from qwen3_export.targets.gguf.names import check_representable, gguf_tensors
    from qwen3_export.targets.gguf.recipes import RECIPES, assign
    from qwen3_export.targets.gguf.sizes import bits_per_weight, total_bytes

    if target not in TARGETS:
        raise ExportError(f"{target}: no such target; there is {', '.join(TARGETS)}")
    opened = load(model, revision=revision, offline=offline)
    config = opened.graph.config
    check_representable(config)
    tensors = gguf_tensors(opened.graph)
    tokens = min(context, config.max_position_embeddings)
    # fp16 keys and values of every layer
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens
    say(
        f"{opened.name}: {human_count(opened.graph.num_parameters)} parameters; memory is weights and the KV cache "
        f"of {tokens} tokens"
    )
    print(f"{'recipe':8} {'bits':>5} {'size':>10} {'memory':>10}  what it is")
    for recipe in RECIPES.values():
        formats = assign(recipe, config, tensors, has_imatrix=recipe.needs_imatrix)
        note = " (needs --imatrix)" if recipe.needs_imatrix else ""
        size = total_bytes(tensors, formats)
        print(
            f"{recipe.name:8} {bits_per_weight(tensors, formats):5.2f} {human_size(size):>10} "
            f"{human_size(size + cache):>10}  {recipe.description}{note}"
        )


quants.__doc__ = f"{quants.__doc__}\n\n{EPILOG}"
