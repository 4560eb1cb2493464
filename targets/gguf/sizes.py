"""Sizes of tensors in a GGUF file, known before anything is quantized.

Only tensor data is counted: metadata and the tokenizer add some megabytes, padding almost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qwen3_export.quantizers.formats import PackedFormat
from qwen3_export.targets.gguf.names import GgufTensor

__all__ = ["bits_per_weight", "tensor_bytes", "total_bytes"]


def tensor_bytes(tensor: GgufTensor, number_format: PackedFormat) -> int:
    """Bytes of one tensor's data in this format; QuantizationError where blocks do not divide its rows."""
    return math.prod(tensor.shape[:-1]) * number_format.row_bytes(tensor.columns)


def total_bytes(tensors: Sequence[GgufTensor], formats: Mapping[str, PackedFormat]) -> int:
    """Bytes of all tensors, with the formats that ``assign`` gave by the names of weights."""
    return sum(tensor_bytes(tensor, formats[tensor.members[0].name]) for tensor in tensors)


def bits_per_weight(tensors: Sequence[GgufTensor], formats: Mapping[str, PackedFormat]) -> float:
    """Stored bits a weight over the whole model, F32 tensors included: the number that llama.cpp prints."""
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return 8 * total_bytes(tensors, formats) / weights
