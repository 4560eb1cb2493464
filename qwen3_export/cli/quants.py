"""``qwen3-export quants``: the recipes, and what each would cost a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import human_count, human_size, say
from qwen3_export.cli.options import OfflineOption, RevisionOption
from qwen3_export.errors import ExportError

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.targets.coreml.export import CoremlExport
    from qwen3_export.targets.executorch.export import ExecutorchExport
    from qwen3_export.targets.onnx.export import OnnxExport

EPILOG = """Examples:

  qwen3-export quants

  qwen3-export quants gguf --model Qwen3-1.7B

  qwen3-export quants onnx
"""


def quants(
    target: Annotated[str, typer.Argument(help="The target whose recipes to list.")] = "gguf",
    model: Annotated[str, typer.Option("--model", "-m", help="The model to forecast for; see gguf --model.")] = "demo",
    context: Annotated[int, typer.Option("--context", help="Tokens of context in the memory forecast.", min=1)] = 4096,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """List recipes with bits per weight, file size and a forecast of the memory that running takes."""
    from qwen3_export.checkpoint.model import load

    if target not in SIZES:
        raise ExportError(f"{target}: no such target; there is {', '.join(SIZES)}")
    opened = load(model, revision=revision, offline=offline)
    config = opened.graph.config
    tokens = min(context, config.max_position_embeddings)
    values = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * tokens
    say(
        f"{opened.name}: {human_count(opened.graph.num_parameters)} parameters; memory is weights and the KV cache "
        f"of {tokens} tokens"
    )
    print(f"{'recipe':9} {'bits':>5} {'size':>10} {'memory':>10}  what it is")
    for row in SIZES[target](opened):
        memory = row.num_bytes + row.bytes_per_cached_value * values
        print(
            f"{row.name:9} {row.bits_per_weight:5.2f} {human_size(row.num_bytes):>10} {human_size(memory):>10}  "
            f"{row.description}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A recipe, and what it makes of a model."""

    name: str
    bits_per_weight: float
    num_bytes: int
    description: str
    bytes_per_cached_value: int


def _gguf(model: Model) -> Iterator[_Row]:
    from qwen3_export.targets.gguf.names import check_representable, gguf_tensors
    from qwen3_export.targets.gguf.recipes import RECIPES, assign
    from qwen3_export.targets.gguf.sizes import bits_per_weight, total_bytes

    config = model.graph.config
    check_representable(config)
    tensors = gguf_tensors(model.graph)
    for recipe in RECIPES.values():
        formats = assign(recipe, config, tensors, has_imatrix=recipe.needs_imatrix)
        yield _Row(
            name=recipe.name,
            bits_per_weight=bits_per_weight(tensors, formats),
            num_bytes=total_bytes(tensors, formats),
            description=recipe.description + (" (needs --imatrix)" if recipe.needs_imatrix else ""),
            bytes_per_cached_value=2,
        )


def _onnx(model: Model) -> Iterator[_Row]:
    from qwen3_export.targets.onnx.export import prepare
    from qwen3_export.targets.onnx.recipes import RECIPES

    for recipe in RECIPES.values():
        if not (model.graph.config.is_moe and recipe.float_type == "F16"):
            export = prepare(model, recipe, out=Path(recipe.name))
            yield _row(export, bytes_per_cached_value=4 if recipe.float_type == "F32" else 2)


def _executorch(model: Model) -> Iterator[_Row]:
    from qwen3_export.targets.executorch.export import prepare
    from qwen3_export.targets.executorch.recipes import RECIPES

    for recipe in RECIPES.values():
        if not (model.graph.config.is_moe and recipe.weight_bits == 32):
            yield _row(prepare(model, recipe, out=Path(recipe.name), max_seq_len=2), bytes_per_cached_value=4)


def _coreml(model: Model) -> Iterator[_Row]:
    from qwen3_export.targets.coreml.export import prepare
    from qwen3_export.targets.coreml.recipes import RECIPES

    for recipe in RECIPES.values():
        yield _row(prepare(model, recipe, out=Path(recipe.name)), bytes_per_cached_value=2)


def _row(export: OnnxExport | ExecutorchExport | CoremlExport, *, bytes_per_cached_value: int) -> _Row:
    return _Row(
        name=export.recipe.name,
        bits_per_weight=export.bits_per_weight,
        num_bytes=export.num_bytes,
        description=export.recipe.description,
        bytes_per_cached_value=bytes_per_cached_value,
    )


SIZES: Mapping[str, Callable[[Model], Iterator[_Row]]] = {
    "gguf": _gguf,
    "onnx": _onnx,
    "executorch": _executorch,
    "coreml": _coreml,
}

quants.__doc__ = f"{quants.__doc__}\n\n{EPILOG}"
