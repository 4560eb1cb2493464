"""The ExecuTorch recipes: the number formats of matrices and embeddings.

Where weights are quantized, XNNPACK rounds activations to int8, with one scale and one zero point per token. Its int4
weights have bfloat16 scales for groups of columns, its int8 weights one scale per channel. Embeddings belong to another
operator with formats of its own, so a tied embedding is stored twice. Experts have their own operator too
(``llama::quantized_moe_ffn``), with groups for both widths, float32 scales, and the router inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from qwen3_export.errors import QuantizationError, UnsupportedModelError
from qwen3_export.graph import Graph, Kind, RenamedWeight, Role, Weight, module_name
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F32, FloatFormat
from qwen3_export.quantizers.packing.torchao import ROWS_TOGETHER
from qwen3_export.targets.executorch.target import GROUP_SIZES

__all__ = [
    "RECIPES",
    "ExecutorchFormat",
    "Recipe",
    "assign",
    "embedding_format",
    "expert_format",
    "find_recipe",
    "integers_of",
    "matrix_format",
    "untied",
]


ExecutorchFormat = FloatFormat | AffineFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The number of bits of matrices and of the embedding; 32 means fp32, for matrices with fp32 activations."""

    name: str
    description: str
    weight_bits: int
    embedding_bits: int


_ALL = (
    Recipe(name="fp32", description="everything fp32: exact", weight_bits=32, embedding_bits=32),
    Recipe(
        name="8da8w", description="int8 weights a channel, int8 activations a token", weight_bits=8, embedding_bits=8
    ),
    Recipe(
        name="8da4w",
        description="int4 weights in groups, int8 activations a token: the usual choice",
        weight_bits=4,
        embedding_bits=8,
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})


def find_recipe(name: str) -> Recipe:
    """Find a recipe by name, in any case. Raises QuantizationError for an unknown name."""
    found = RECIPES.get(name.lower())
    if found is None:
        raise QuantizationError(f"`recipe` {name}: not an ExecuTorch recipe; use one of {', '.join(RECIPES)}")
    return found


def untied(graph: Graph) -> Graph:
    """The same model with a separate head, because this target stores head and embedding in different formats."""
    config = graph.config
    if not config.tie_word_embeddings:
        return graph
    head = Role(Kind.LM_HEAD)
    weights: dict[str, Weight] = dict(graph.weights)
    weights[module_name(head)] = RenamedWeight(source=graph.head, new_role=head)
    return replace(graph, config=replace(config, tie_word_embeddings=False), weights=MappingProxyType(weights))


def assign(
    graph: Graph, recipe: Recipe, *, group_size: int = 32, embedding_bits: int | None = None
) -> dict[str, ExecutorchFormat]:
    """Choose the format of every weight of an untied graph, by name.

    Raises QuantizationError for a group size that does not divide a weight's columns, and
    UnsupportedModelError for a mixture of experts that the operator for experts cannot hold.
    """
    _check_experts(graph, recipe)
    bits = recipe.embedding_bits if embedding_bits is None else embedding_bits
    formats: dict[str, ExecutorchFormat] = {}
    for weight in graph:
        is_embedding = weight.role.kind is Kind.EMBED_TOKENS
        chosen = _embedding(bits) if is_embedding else _matrix(weight, recipe, group_size)
        formats[weight.name] = chosen
        _check_divides(weight, chosen, group_size)
    return formats


def integers_of(number_format: ExecutorchFormat) -> AffineFormat | None:
    """The format of a weight's codes; None where it is stored as floats."""
    return number_format if isinstance(number_format, AffineFormat) else None


def matrix_format(num_bits: int, group_size: int = 32) -> AffineFormat:
    """What XNNPACK multiplies with: 8 bits a channel, or 4 bits in groups."""
    if num_bits == 8:
        return AffineFormat(num_bits=8, narrow=True)
    return AffineFormat(num_bits=4, group_size=group_size, scale_dtype="bf16")


def expert_format(num_bits: int, group_size: int) -> AffineFormat:
    """What the operator for experts multiplies with."""
    return AffineFormat(num_bits=num_bits, group_size=group_size)


def embedding_format(bits: int) -> AffineFormat:
    """What is looked up: eight bits per row, or four bits in groups of 32."""
    return AffineFormat(num_bits=8) if bits == 8 else AffineFormat(num_bits=4, group_size=32)


def _matrix(weight: Weight, recipe: Recipe, group_size: int) -> ExecutorchFormat:
    if recipe.weight_bits == 32 or len(weight.shape) == 1 or weight.role.kind is Kind.ROUTER:
        return F32
    if weight.role.expert is not None:
        return expert_format(recipe.weight_bits, group_size)
    return matrix_format(recipe.weight_bits, group_size)


def _check_experts(graph: Graph, recipe: Recipe) -> None:
    config = graph.config
    if not config.is_moe:
        return
    problem = None
    if recipe.weight_bits == 32:
        problem = "has no fp32 form; use 8da8w or 8da4w"
    elif not config.norm_topk_prob:
        problem = "always brings the chosen experts' shares to one, which this model (norm_topk_prob false) does not"
    elif config.moe_intermediate_size % ROWS_TOGETHER:
        problem = f"takes experts of a multiple of {ROWS_TOGETHER} rows, not {config.moe_intermediate_size}"
    if problem is not None:
        raise UnsupportedModelError(f"{graph.name}: ExecuTorch's operator for mixtures of experts {problem}")


def _embedding(bits: int) -> ExecutorchFormat:
    return F32 if bits == 32 else embedding_format(bits)


def _check_divides(weight: Weight, number_format: ExecutorchFormat, group_size: int) -> None:
    size = number_format.columns_together or 1
    if weight.shape[-1] % size:
        fitting = [other for other in GROUP_SIZES if weight.shape[-1] % other == 0]
        advice = f"use {' or '.join(map(str, fitting))}" if fitting else "use 8da8w or fp32"
        raise QuantizationError(
            f"{weight.name}: in_features {weight.shape[1]} is not a multiple of `group_size` {group_size}; {advice}"
        )
