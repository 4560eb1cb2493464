"""The ONNX recipes: the number format of each weight.

MatMulNBits, onnxruntime's operator for weights of a few bits, stores weights in blocks of columns. Each block has a
scale and, optionally, a zero point. A tied embedding is also the output head, so it is stored once and has one format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F16, F32, FloatFormat
from qwen3_export.targets.onnx.target import GROUP_SIZES

__all__ = ["ALIASES", "RECIPES", "OnnxFormat", "Recipe", "assign", "find_recipe"]


FloatType = Literal["F32", "F16"]
OnnxFormat = FloatFormat | AffineFormat


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How weights are stored; ``num_bits`` gives the bits of a role, or None if it is not quantized.

    ``float_type`` is the type of activations, scales and unquantized weights.
    """

    name: str
    description: str
    float_type: FloatType
    num_bits: Callable[[Role, int], int | None]

    @property
    def is_quantized(self) -> bool:
        return self.num_bits(Role(Kind.Q_PROJ, 0), 1) is not None


def _none(_role: Role, _layers: int) -> None:
    return None


def _four(_role: Role, _layers: int) -> int:
    return 4


def _eight(_role: Role, _layers: int) -> int:
    return 8


def _four_or_eight(role: Role, layers: int) -> int:
    """Eight for embedding, head, and v_proj and down_proj where errors matter most (as in Q4_K_M); else four.

    Experts stay at four: they are most of a mixture's bytes, and their operator has no fp32 kernel for eight.
    """
    if role.layer is None:
        return 8
    if role.expert is not None:
        return 4
    edge = layers // 8
    is_heavy = role.layer < edge or role.layer >= layers - edge or (role.layer - edge) % 3 == 2
    return 8 if is_heavy and role.kind in (Kind.V_PROJ, Kind.DOWN_PROJ) else 4


_ALL = (
    Recipe(name="fp32", description="every weight as fp32: exact", float_type="F32", num_bits=_none),
    Recipe(name="fp16", description="weights and activations as fp16, for GPUs", float_type="F16", num_bits=_none),
    Recipe(name="int8", description="8 bits: nearly the original", float_type="F32", num_bits=_eight),
    Recipe(
        name="int4_int8",
        description="4 bits, with 8 for the embedding, the head, and v_proj and down_proj in half of the layers",
        float_type="F32",
        num_bits=_four_or_eight,
    ),
    Recipe(name="int4", description="4 bits throughout: the usual choice", float_type="F32", num_bits=_four),
    Recipe(
        name="int4_fp16",
        description="4 bits, activations and scales as fp16, for GPUs",
        float_type="F16",
        num_bits=_four,
    ),
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({recipe.name: recipe for recipe in _ALL})

# The names that transformers.js uses.
ALIASES: Mapping[str, str] = MappingProxyType({"q4": "int4", "q4f16": "int4_fp16", "q8": "int8"})


def find_recipe(name: str) -> Recipe:
    """Find a recipe by name, in any case. Raises QuantizationError for an unknown name."""
    lowered = name.lower().replace("-", "_")
    found = RECIPES.get(ALIASES.get(lowered, lowered))
    if found is None:
        raise QuantizationError(f"`recipe` {name}: not an ONNX recipe; use one of {', '.join(RECIPES)}")
    return found


def assign(graph: Graph, recipe: Recipe, *, group_size: int = 32, is_symmetric: bool = True) -> dict[str, OnnxFormat]:
    """The format of every weight by its name: F32 or F16, or affine integers in blocks.

    Raises QuantizationError for a group size that does not divide a weight's columns.
    """
    return {
        weight.name: _format(weight, graph, recipe, group_size=group_size, is_symmetric=is_symmetric)
        for weight in graph
    }


def _format(weight: Weight, graph: Graph, recipe: Recipe, *, group_size: int, is_symmetric: bool) -> OnnxFormat:
    role = weight.role
    num_bits = recipe.num_bits(role, graph.config.num_hidden_layers)
    if num_bits is None or len(weight.shape) == 1 or role.kind is Kind.ROUTER:
        return F32 if recipe.float_type == "F32" else F16
    number_format = AffineFormat(
        num_bits=num_bits,
        group_size=group_size,
        symmetric=is_symmetric,
        scale_dtype="f32" if recipe.float_type == "F32" else "f16",
        negative_scales=is_symmetric,
    )
    if weight.shape[-1] % group_size:
        fitting = [size for size in GROUP_SIZES if weight.shape[-1] % size == 0]
        advice = f"use {' or '.join(map(str, fitting))}" if fitting else "this model can only be stored as fp32 or fp16"
        raise QuantizationError(
            f"{weight.name}: in_features {weight.shape[-1]} is not a multiple of `group_size` {group_size}; {advice}"
        )
    return number_format
