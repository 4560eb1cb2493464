"""llama.cpp's quantization mixes as data: the format of each role, depending on its place in the model.

Source: ``llama_tensor_get_type_impl`` in llama.cpp's ``src/llama-quant.cpp``; a test compares every recipe with the
output of ``llama_model_quantize``. A mix has a base format. For the three roles whose errors cost most, it also has a
list of choices: the first one whose condition holds at a place in the model is used instead of the base. "More bits"
means the first and last eighth of the layers, and every third layer between.

All divisions are integer divisions, so in a model of seven layers the first eighth is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from qwen3_export.errors import QuantizationError

__all__ = ["ALIASES", "RECIPES", "Place", "Recipe", "eight_experts", "find_recipe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The facts that a choice may depend on: the layer, and properties of the whole model."""

    layer: int
    layers: int
    heads_per_kv: int
    num_experts: int
    has_imatrix: bool


Choices = tuple[tuple[Callable[[Place], bool], str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One of llama.cpp's file types: its number in ``general.file_type`` and its mix.

    ``needs_imatrix``: llama.cpp refuses to write this type without an importance matrix.
    """

    name: str
    file_type: int
    base: str
    description: str
    attn_v: Choices = ()
    attn_output: Choices = ()
    ffn_down: Choices = ()
    needs_imatrix: bool = False


def always(_place: Place) -> bool:
    return True


def more_bits(place: Place) -> bool:
    eighth = place.layers // 8
    in_the_middle = eighth <= place.layer < 7 * place.layers // 8
    return not in_the_middle or (place.layer - eighth) % 3 == 2


def first_two_layers(place: Place) -> bool:
    return place.layer < 2


def first_four_layers(place: Place) -> bool:
    return place.layer < 4


def first_eighth(place: Place) -> bool:
    return place.layer < place.layers // 8


def first_sixteenth(place: Place) -> bool:
    return place.layer < place.layers // 16


def first_eighth_with_imatrix(place: Place) -> bool:
    return place.has_imatrix and first_eighth(place)


def first_eighth_without_imatrix(place: Place) -> bool:
    return not place.has_imatrix and first_eighth(place)


def four_heads_per_kv(place: Place) -> bool:
    return place.heads_per_kv >= 4


def eight_experts(place: Place) -> bool:
    """True for Mixtral's number of experts: there attention is a small part of the file, and gets more bits."""
    return place.num_experts == 8


_MIXES = (
    Recipe(name="f32", file_type=0, base="F32", description="every weight as fp32"),
    Recipe(name="f16", file_type=1, base="F16", description="every matrix as fp16"),
    Recipe(name="bf16", file_type=32, base="BF16", description="every matrix as bf16, the checkpoint's bits"),
    Recipe(name="q8_0", file_type=7, base="Q8_0", description="8 bits: nearly the original"),
    Recipe(name="q6_k", file_type=18, base="Q6_K", description="6 bits: hard to tell from the original"),
    Recipe(
        name="q5_k_m", file_type=17, base="Q5_K",
        description="5 bits, with 6 for attn_v and ffn_down in half of the layers",
        attn_v=((more_bits, "Q6_K"),),
        ffn_down=((more_bits, "Q6_K"),),
    ),
    Recipe(name="q5_k_s", file_type=16, base="Q5_K", description="5 bits throughout"),
    Recipe(
        name="q4_k_m", file_type=15, base="Q4_K",
        description="4 bits, with 6 for attn_v and ffn_down in half of the layers: the usual choice",
        attn_v=((more_bits, "Q6_K"),),
        attn_output=((eight_experts, "Q5_K"),),
        ffn_down=((more_bits, "Q6_K"),),
    ),
    Recipe(
        name="q4_k_s", file_type=14, base="Q4_K",
        description="4 bits, with 5 for attn_v and ffn_down in the first layers",
        attn_v=((first_four_layers, "Q5_K"),),
        attn_output=((eight_experts, "Q5_K"),),
        ffn_down=((first_eighth, "Q5_K"),),
    ),
    Recipe(
        name="q3_k_l", file_type=13, base="Q3_K",
        description="3 bits, with 5 for attn_v, attn_output and ffn_down",
        attn_v=((always, "Q5_K"),),
        attn_output=((eight_experts, "Q3_K"), (always, "Q5_K")),
        ffn_down=((always, "Q5_K"),),
    ),
    Recipe(
        name="q3_k_m", file_type=12, base="Q3_K",
        description="3 bits, with 4 or 5 for attn_v, attn_output and ffn_down",
        attn_v=((first_two_layers, "Q5_K"), (always, "Q4_K")),
        attn_output=((eight_experts, "Q5_K"), (always, "Q4_K")),
        ffn_down=((first_sixteenth, "Q5_K"), (always, "Q4_K")),
    ),
    Recipe(
        name="q3_k_s", file_type=11, base="Q3_K", description="3 bits throughout",
        attn_output=((eight_experts, "Q5_K"),),
    ),
    Recipe(
        name="q2_k", file_type=10, base="Q2_K",
        description="2 bits, with 3 or 4 for attn_v, attn_output and ffn_down: much is lost",
        attn_v=((four_heads_per_kv, "Q4_K"), (always, "Q3_K")),
        attn_output=((eight_experts, "Q5_K"), (always, "Q3_K")),
        ffn_down=((always, "Q3_K"),),
    ),
    Recipe(
        name="q2_k_s", file_type=21, base="Q2_K",
        description="2 bits nearly throughout: only with an importance matrix",
        attn_v=((four_heads_per_kv, "Q4_K"),),
        ffn_down=((first_eighth, "Q4_K"),),
        needs_imatrix=True,
    ),
    Recipe(name="q5_1", file_type=9, base="Q5_1", description="5 bits with an offset, blocks of 32"),
    Recipe(
        name="q5_0", file_type=8, base="Q5_0", description="5 bits, blocks of 32",
        ffn_down=((first_eighth_with_imatrix, "Q5_1"),),
    ),
    Recipe(name="q4_1", file_type=3, base="Q4_1", description="4 bits with an offset, blocks of 32"),
    Recipe(
        name="q4_0", file_type=2, base="Q4_0",
        description="4 bits, blocks of 32: the simplest, and fast on ARM CPUs",
        ffn_down=((first_eighth_with_imatrix, "Q4_1"),),
    ),
    Recipe(
        name="iq4_nl", file_type=25, base="IQ4_NL", description="4 bits from a code book, blocks of 32",
        attn_v=((four_heads_per_kv, "Q5_K"),),
        attn_output=((eight_experts, "Q5_K"),),
        ffn_down=((first_eighth_without_imatrix, "Q5_K"),),
    ),
    Recipe(
        name="iq4_xs", file_type=30, base="IQ4_XS",
        description="4 bits from a code book: smaller than q4_k_s at about its quality",
        attn_v=((four_heads_per_kv, "Q5_K"),),
        attn_output=((eight_experts, "Q5_K"),),
        ffn_down=((first_eighth_without_imatrix, "Q5_K"),),
    ),
)  # fmt: skip

RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _MIXES})
ALIASES: Mapping[str, str] = MappingProxyType({"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"})


def find_recipe(name: str) -> Recipe:
    """Find a recipe by name, in any case; ``q4_k`` and the like are llama.cpp's short names.

    Raises QuantizationError, with the list of recipes, for an unknown name.
    """
    key = name.lower()
    recipe = RECIPES.get(ALIASES.get(key, key))
    if recipe is None:
        raise QuantizationError(f"{name!r} is not a GGUF recipe; use one of {', '.join(RECIPES)}")
    return recipe
