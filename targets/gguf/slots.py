"""The tensors of a GGUF file whose formats can be chosen, and the formats that each may have.

Offered are llama.cpp's block formats that lose less the larger they are: from Q2_K to Q8_0 with IQ4_XS, and where
blocks of 256 do not divide the rows, those with blocks of 32. Q4_0 and IQ4_NL take the bytes of Q4_K and lose more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen3_export.quantizers.formats import PackedFormat
from qwen3_export.targets.allocating import Slot
from qwen3_export.targets.gguf.formats import FORMATS
from qwen3_export.targets.gguf.names import GgufTensor
from qwen3_export.targets.gguf.overrides import Overrides, has_tied_head, is_always_f32, override_for
from qwen3_export.targets.gguf.sizes import tensor_bytes

__all__ = ["slots_of"]

BLOCKS_OF_256 = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
BLOCKS_OF_32 = ("IQ4_NL", "Q5_0", "Q5_1", "Q8_0")


def slots_of(
    tensors: Sequence[GgufTensor], formats: Mapping[str, PackedFormat], *, overrides: Overrides
) -> tuple[Slot, ...]:
    """A slot for each tensor that the recipe quantizes and the user has no format for; ``formats`` are the recipe's."""
    is_tied = has_tied_head(tensors)
    found = []
    for tensor in tensors:
        planned = formats[tensor.members[0].name]
        fixed = is_always_f32(tensor) or planned.is_float or override_for(tensor, overrides, is_tied=is_tied)
        names = _names(tensor.columns)
        if fixed or not names:
            continue
        names = tuple(dict.fromkeys((*names, planned.name)))
        found.append(
            Slot(
                name=tensor.name,
                shape=tensor.shape,
                weights=tuple(member.name for member in tensor.members),
                formats={name: FORMATS[name] for name in names},
                num_bytes={name: tensor_bytes(tensor, FORMATS[name]) for name in names},
                planned=planned.name,
            )
        )
    return tuple(found)


def _names(columns: int) -> tuple[str, ...]:
    if columns % 256 == 0:
        return BLOCKS_OF_256
    return BLOCKS_OF_32 if columns % 32 == 0 else ()
