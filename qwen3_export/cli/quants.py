"""``qwen3-export quants``: the recipes, and what each would cost a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import say
from qwen3_export.cli.options import OfflineOption, RevisionOption
from qwen3_export.cli.wording import as_options
from qwen3_export.targets.options import make_options
from qwen3_export.targets.registry import find_target
from qwen3_export.units import human_count, human_duration, human_size

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.targets.target import Target

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
    """List recipes with bits per weight, file size and a forecast of the memory that running takes.

    At the end it says what the best file in a recipe's size takes on this machine.
    """
    from qwen3_export.checkpoint.model import load

    chosen = find_target(target)
    doors = chosen.doors
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
            f"{as_options(row.description)}"
        )
    print(_best(chosen, opened))


def _best(target: Target, model: Model) -> str:
    """The command for the best artifact in a recipe's size, and what it takes, with the text that ships."""
    from qwen3_export.calibration.tokens import read_calibration
    from qwen3_export.targets.exporting import forecast

    text = read_calibration(None, model.tokenizer)
    plans = [
        target.doors.plan(model, target.default_recipe, out=None, options=options, method="gptq")
        for options in (target.options(), make_options(target.options, target.title, {"allocate": True}))
    ]
    solving, best = (forecast(plan, "gptq", text) for plan in plans)
    return (
        f"the best in {target.default_recipe}'s size: --quant {target.default_recipe} --method gptq --allocate, "
        f"{human_duration(best.seconds)} on this machine and {human_size(best.memory_bytes)} of memory\n"
        f"in the recipe's own formats: --method gptq, {human_duration(solving.seconds)} and "
        f"{human_size(solving.memory_bytes)}"
    )


quants.__doc__ = f"{quants.__doc__}\n\n{EPILOG}"
