"""What formats can be chosen for in an ONNX graph: each matrix that the recipe quantizes, and the experts of a layer.

A matrix is one MatMulNBits, so it has bits, block size and zero points of its own. A tied embedding is the head too,
and is one slot. All experts of a layer are one QMoE, which has one block size: they are one slot.

Offered are 4 and 8 bits in every block size that divides the columns, with and without zero points. Scales keep the
recipe's float type. Experts of 8 bits load in no transformers.js (``versions``), so they are not offered there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.targets.allocating import Slot
from qwen3_export.targets.onnx.layout import experts_prefix, stored_bytes
from qwen3_export.targets.onnx.recipes import OnnxFormat
from qwen3_export.targets.onnx.target import GROUP_SIZES

__all__ = ["slots_of"]

BITS, BROWSER_EXPERT_BITS = (4, 8), (4,)


def slots_of(graph: Graph, formats: Mapping[str, OnnxFormat], *, is_for_browsers: bool) -> tuple[Slot, ...]:
    """A slot for each matrix that the recipe quantizes; ``formats`` are the recipe's."""
    return tuple(
        _slot(name, weights, planned, is_for_browsers=is_for_browsers)
        for name, weights in _groups(graph).items()
        if isinstance(planned := formats[weights[0].name], AffineFormat)
    )


def _groups(graph: Graph) -> dict[str, list[Weight]]:
    """Weights that must have one format, by the name of their slot, in the order of a forward pass."""
    found: dict[str, list[Weight]] = {}
    for weight in graph:
        role = weight.role
        name = weight.name if role.expert is None or role.layer is None else experts_prefix(role.layer)
        found.setdefault(name, []).append(weight)
    return found


def _slot(name: str, weights: Sequence[Weight], planned: AffineFormat, *, is_for_browsers: bool) -> Slot:
    columns, is_mixture = {weight.shape[-1] for weight in weights}, weights[0].role.expert is not None
    bits = BROWSER_EXPERT_BITS if is_for_browsers and is_mixture else BITS
    known = {found.name: found for found in (*_offered(planned, columns, bits), planned)}
    rows = sum(weight.shape[0] for weight in weights)
    return Slot(
        name=name,
        shape=weights[0].shape if len(weights) == 1 else (rows, *sorted(columns)),
        weights=tuple(weight.name for weight in weights),
        formats=known,
        num_bytes={name: sum(stored_bytes(found, weight.shape) for weight in weights) for name, found in known.items()},
        planned=planned.name,
    )


def _offered(planned: AffineFormat, columns: set[int], bits: Sequence[int]) -> Iterator[AffineFormat]:
    for num_bits in bits:
        for size in GROUP_SIZES:
            if all(count % size == 0 for count in columns):
                for symmetric in (True, False):
                    yield replace(
                        planned, num_bits=num_bits, group_size=size, symmetric=symmetric, negative_scales=symmetric
                    )
