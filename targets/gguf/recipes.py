"""Choose the format of each tensor of a GGUF file, from a recipe and a user's overrides.

The recipes are llama.cpp's mixes (``mixes.py``). ``assign`` applies one to a model and gives, for each tensor, the
format that ``llama_model_quantize`` would choose (a test compares them). Besides the mix, it applies llama.cpp's
general rules: which tensors stay F32, more bits for the output projection, and which format replaces one whose blocks
of 256 or 32 do not divide a row.

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
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.targets.gguf.mixes import ALIASES, RECIPES, Place, Recipe, eight_experts, find_recipe
from qwen3_export.targets.gguf.names import GgufTensor
from qwen3_export.targets.gguf.overrides import (
    Overrides,
    check_overrides,
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
UNBLOCKED = frozenset({"F32", "F16", "BF16"})
NO_OVERRIDES = Overrides()


def assign(
    recipe: Recipe,
    config: Qwen3Config,
    tensors: Sequence[GgufTensor],
    *,
    has_imatrix: bool,
    overrides: Overrides = NO_OVERRIDES,
) -> dict[str, str]:
    """The format of every tensor, by tensor name, in the order of ``tensors``.

    ``has_imatrix`` is True if the whole file is quantized with an importance matrix; some mixes depend on it. Raises
    QuantizationError for an override that cannot be applied, and if llama.cpp requires an importance matrix.
    """
    check_overrides(overrides, tensors)
    is_tied = all(tensor.kind is not Kind.LM_HEAD for tensor in tensors)
    formats: dict[str, str] = {}
    for tensor in tensors:
        wanted = override_for(tensor, overrides, is_tied=is_tied)
        place = _place(tensor, config, has_imatrix=has_imatrix)
        formats[tensor.name] = wanted or _chosen_by_recipe(recipe, tensor, place=place, is_tied=is_tied)
    _check_imatrix(recipe, tensors, formats=formats, has_imatrix=has_imatrix)
    return formats


def _chosen_by_recipe(recipe: Recipe, tensor: GgufTensor, *, place: Place, is_tied: bool) -> str:
    if is_always_f32(tensor):
        return "F32"
    if recipe.base in UNBLOCKED:
        return recipe.base
    if tensor.kind is Kind.LM_HEAD or (is_tied and tensor.kind is Kind.EMBED_TOKENS):
        chosen = _output_format(recipe, tensor.columns)
    else:
        chosen = _mixed_format(recipe, tensor.kind, place=place)
    return _fall_back(chosen, tensor.columns)


def _output_format(recipe: Recipe, columns: int) -> str:
    """The output projection gets at least 6 bits, or 8 if the base's blocks do not divide its rows."""
    if columns % GGML_FORMATS[recipe.base].block_size or recipe.base == "Q8_0":
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
        if columns % GGML_FORMATS[candidate].block_size == 0:
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


def _check_imatrix(
    recipe: Recipe, tensors: Sequence[GgufTensor], *, formats: dict[str, str], has_imatrix: bool
) -> None:
    """llama.cpp's rule: such a file may have 2 bits inside the layers only with an importance matrix."""
    if has_imatrix or not recipe.needs_imatrix:
        return
    for tensor in tensors:
        if tensor.layer is not None and formats[tensor.name] == recipe.base:
            raise QuantizationError(
                f"{tensor.name}: {recipe.name} stores it in 2 bits, which is useless without an importance "
                "matrix; give `imatrix`, or use q2_k"
            )
