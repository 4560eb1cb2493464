"""Choose the format of each tensor of a GGUF file, from a recipe and a user's overrides.

The recipes are llama.cpp's mixes (``mixes.py``); ``assign`` applies one to a model and gives, weight by
weight, what ``llama_model_quantize`` would choose (a test compares them).  Besides the mix it knows llama.cpp's
general rules: what stays F32, that the output projection gets more bits, and what a row falls back to that
blocks of 256 or of 32 do not divide.

Overrides differ from llama.cpp on purpose. llama.cpp finds a dense layer's number by counting the tensors without an
override, so its ``--tensor-type blk.0.attn_v=q8_0`` shifts the mix of all later layers. It also silently drops
overrides if the recipe is a float format. Here an override always applies to the tensors that it names, and to no
others.
"""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_export.config import Qwen3Config
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Kind
from qwen3_export.quantizers.formats import PackedFormat
from qwen3_export.targets.gguf.formats import FORMATS
from qwen3_export.targets.gguf.mixes import ALIASES, RECIPES, Place, Recipe, eight_experts, find_recipe
from qwen3_export.targets.gguf.names import GgufTensor
from qwen3_export.targets.gguf.overrides import (
    Overrides,
    check_overrides,
    has_tied_head,
    is_always_f32,
    override_for,
    parse_overrides,
)

__all__ = ["ALIASES", "RECIPES", "Overrides", "Recipe", "assign", "find_recipe", "parse_overrides"]

# The replacement for a format with blocks of 256 if these do not divide the row.
FALLBACKS = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
NO_OVERRIDES = Overrides()


def assign(
    recipe: Recipe,
    config: Qwen3Config,
    tensors: Sequence[GgufTensor],
    *,
    has_imatrix: bool,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, PackedFormat]:
    """The format of every weight, by its name, in the order of ``tensors``; the weights of a tensor have the same.

    ``has_imatrix`` is True if the whole file is quantized with an importance matrix; some mixes depend on it. Raises
    QuantizationError for an override that cannot be applied, and if llama.cpp requires an importance matrix.
    """
    check_overrides(overrides, tensors)
    is_tied = has_tied_head(tensors)
    formats: dict[str, PackedFormat] = {}
    for tensor in tensors:
        wanted = override_for(tensor, overrides, is_tied=is_tied)
        place = _place(tensor, config, has_imatrix=has_imatrix)
        chosen = wanted or _chosen_by_recipe(recipe, tensor, place=place, is_tied=is_tied)
        _check_imatrix(recipe, tensor, chosen=chosen, has_imatrix=has_imatrix)
        formats |= {member.name: FORMATS[chosen] for member in tensor.members}
    return formats


def _chosen_by_recipe(recipe: Recipe, tensor: GgufTensor, *, place: Place, is_tied: bool) -> str:
    if is_always_f32(tensor):
        return "F32"
    if FORMATS[recipe.base].is_float:
        return recipe.base
    if tensor.kind is Kind.LM_HEAD or (is_tied and tensor.kind is Kind.EMBED_TOKENS):
        chosen = _output_format(recipe, tensor.columns)
    else:
        chosen = _mixed_format(recipe, tensor.kind, place=place)
    return _fall_back(chosen, tensor.columns)


def _output_format(recipe: Recipe, columns: int) -> str:
    """The output projection gets 6 bits at least, and 8 where the base's blocks do not divide its rows."""
    if columns % FORMATS[recipe.base].block_size or recipe.base == "Q8_0":
        return "Q8_0"
    return "Q6_K"


def _mixed_format(recipe: Recipe, kind: Kind, *, place: Place) -> str:
    if kind in (Kind.K_PROJ, Kind.V_PROJ) and eight_experts(place):
        return "Q8_0"  # in every recipe: the two are tiny beside eight experts
    choices = {
        Kind.V_PROJ: recipe.attn_v,
        Kind.O_PROJ: recipe.attn_output,
        Kind.DOWN_PROJ: recipe.ffn_down,
    }.get(kind, ())
    return next((chosen for condition, chosen in choices if condition(place)), recipe.base)


def _fall_back(chosen: str, columns: int) -> str:
    """A format whose blocks divide the row: the chosen one, one with blocks of 32, or F16."""
    for candidate in (chosen, FALLBACKS.get(chosen, chosen)):
        if columns % FORMATS[candidate].block_size == 0:
            return candidate
    return "F16"


def _place(tensor: GgufTensor, config: Qwen3Config, *, has_imatrix: bool) -> Place:
    return Place(
        layer=tensor.layer or 0,
        layers=config.num_hidden_layers,
        heads_per_kv=config.heads_per_kv,
        num_experts=config.num_experts,
        has_imatrix=has_imatrix,
    )


def _check_imatrix(recipe: Recipe, tensor: GgufTensor, *, chosen: str, has_imatrix: bool) -> None:
    """llama.cpp's rule: 2 bits inside the layers of such a file only under an importance matrix."""
    if recipe.needs_imatrix and not has_imatrix and tensor.layer is not None and chosen == recipe.base:
        raise QuantizationError(
            f"{tensor.name}: {recipe.name} stores it in 2 bits, which is useless without an importance "
            "matrix; give `imatrix`, or use q2_k"
        )
