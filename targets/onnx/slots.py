"""What formats can be chosen for in an ONNX graph: each matrix that the recipe quantizes, and the experts of a layer.

A matrix is one MatMulNBits, so it has bits, block size and zero points of its own. A tied embedding is the head too,
and is one slot. All experts of a layer are one QMoE, which has one block size: they are one slot.

Offered are 4 and 8 bits in every block size that divides the columns, with and without zero points. Scales keep the
recipe's float type. Experts of 8 bits load in no transformers.js (``versions``), so they are not offered there.

Matrices may have 2 bits where onnxruntime's CPU multiplies with them as fast as with 4: in the genai flavour, with int8
activations, in blocks of 32 to 128 columns. An embedding is looked up too, which takes 4 or 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from qwen3_export.graph import Graph, Kind, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.targets.allocating import Slot
from qwen3_export.targets.onnx.layout import experts_prefix, stored_bytes
from qwen3_export.targets.onnx.recipes import OnnxFormat
from qwen3_export.targets.onnx.target import GROUP_SIZES, INT8_ACTIVATIONS

__all__ = ["slots_of"]

SIZES_AT_2_BITS = (32, 64, 128)


def slots_of(
    graph: Graph, formats: Mapping[str, OnnxFormat], *, is_for_browsers: bool, accuracy_level: int
) -> tuple[Slot, ...]:
    """A slot for each matrix that the recipe quantizes; ``formats`` are the recipe's."""
    has_2_bits = not is_for_browsers and accuracy_level == INT8_ACTIVATIONS
    found = []
    for name, weights in _groups(graph).items():
        planned = formats[weights[0].name]
        if isinstance(planned, AffineFormat):
            sizes = _sizes(weights, planned, has_2_bits=has_2_bits, is_for_browsers=is_for_browsers)
            found.append(_slot(name, weights, planned, sizes))
    return tuple(found)


def _groups(graph: Graph) -> dict[str, list[Weight]]:
    """Weights that must have one format, by the name of their slot, in the order of a forward pass."""
    found: dict[str, list[Weight]] = {}
    for weight in graph:
        role = weight.role
        name = weight.name if role.expert is None or role.layer is None else experts_prefix(role.layer)
        found.setdefault(name, []).append(weight)
    return found


def _sizes(
    weights: Sequence[Weight], planned: AffineFormat, *, has_2_bits: bool, is_for_browsers: bool
) -> dict[int, tuple[int, ...]]:
    """The block sizes by the bits that are offered."""
    role = weights[0].role
    if role.expert is not None:
        return {4: GROUP_SIZES} if is_for_browsers else {4: GROUP_SIZES, 8: GROUP_SIZES}
    if has_2_bits and planned.scale_dtype == "f32" and role.kind is not Kind.EMBED_TOKENS:
        return {2: SIZES_AT_2_BITS, 4: GROUP_SIZES, 8: GROUP_SIZES}
    return {4: GROUP_SIZES, 8: GROUP_SIZES}


def _slot(name: str, weights: Sequence[Weight], planned: AffineFormat, sizes: Mapping[int, tuple[int, ...]]) -> Slot:
    columns, rows = {weight.shape[-1] for weight in weights}, sum(weight.shape[0] for weight in weights)
    offered = (
        replace(planned, num_bits=bits, group_size=size, symmetric=symmetric, negative_scales=symmetric)
        for bits, of_bits in sizes.items()
        for size in of_bits
        for symmetric in (True, False)
        if all(count % size == 0 for count in columns)
    )
    known = {found.name: found for found in (*offered, planned)}
    return Slot(
        name=name,
        shape=weights[0].shape if len(weights) == 1 else (rows, *sorted(columns)),
        weights=tuple(weight.name for weight in weights),
        formats=known,
        num_bytes={name: sum(stored_bytes(found, weight.shape) for weight in weights) for name, found in known.items()},
        planned=planned.name,
    )
