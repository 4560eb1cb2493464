"""What formats can be chosen for in an ExecuTorch program: matrices, the embedding, and the experts of a layer.

Offered is what the operators have. XNNPACK multiplies with 4 bits in groups and with 8 bits a channel; an embedding has
8 bits a row, or 4 in groups of 32. All experts of a layer are one operator with one width and one group size, so they
are one slot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwen3_export.graph import Graph, Kind, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.targets.allocating import Slot, slot_of
from qwen3_export.targets.executorch.recipes import ExecutorchFormat, embedding_format, expert_format, matrix_format
from qwen3_export.targets.executorch.target import GROUP_SIZES, ExecutorchOptions

__all__ = ["slots_of"]

BITS, EMBEDDING_BITS = (4, 8), (4, 8)


def slots_of(graph: Graph, formats: Mapping[str, ExecutorchFormat], options: ExecutorchOptions) -> tuple[Slot, ...]:
    """A slot for each matrix that the recipe quantizes, in an untied graph; ``formats`` are the recipe's.

    The embedding has one if its bits were not asked for. A portable program looks up bytes alone.
    """
    found, experts = [], dict[int, list[Weight]]()
    for weight in graph:
        planned, role = formats[weight.name], weight.role
        if not isinstance(planned, AffineFormat):
            continue
        if role.expert is not None and role.layer is not None:
            experts.setdefault(role.layer, []).append(weight)
        elif role.kind is not Kind.EMBED_TOKENS:
            found.append(slot_of(weight, _matrix(weight), planned=planned))
        elif options.embedding is None and not options.portable:
            found.append(slot_of(weight, _embedding(weight), planned=planned))
    return (*found, *(_experts(layer, weights, formats) for layer, weights in experts.items()))


def _matrix(weight: Weight) -> list[AffineFormat]:
    return [*(matrix_format(4, size) for size in _sizes([weight])), matrix_format(8)]


def _embedding(weight: Weight) -> list[AffineFormat]:
    offered = (embedding_format(bits) for bits in EMBEDDING_BITS)
    return [found for found in offered if not weight.shape[-1] % (found.group_size or 1)]


def _experts(layer: int, weights: Sequence[Weight], formats: Mapping[str, ExecutorchFormat]) -> Slot:
    offered = [expert_format(bits, size) for bits in BITS for size in _sizes(weights)]
    slots = [slot_of(weight, offered, planned=formats[weight.name]) for weight in weights]
    one, columns = slots[0], {weight.shape[-1] for weight in weights}
    return Slot(
        name=f"model.layers.{layer}.mlp.experts",
        shape=(sum(weight.shape[0] for weight in weights), *sorted(columns)),
        weights=tuple(weight.name for weight in weights),
        formats=one.formats,
        num_bytes={name: sum(slot.num_bytes[name] for slot in slots) for name in one.formats},
        planned=one.planned,
    )


def _sizes(weights: Iterable[Weight]) -> list[int]:
    """The group sizes that divide the columns of all of them."""
    columns = {weight.shape[-1] for weight in weights}
    return [size for size in GROUP_SIZES if all(count % size == 0 for count in columns)]
