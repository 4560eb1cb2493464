"""What tensors weigh in a GGUF file, known before anything is quantized.

Bytes are those of tensor data alone: metadata and the tokenizer add some megabytes, padding next to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.targets.gguf.names import GgufTensor

__all__ = ["bits_per_weight", "tensor_bytes", "total_bytes"]


def tensor_bytes(tensor: GgufTensor, format_name: str) -> int:
    """Bytes of one tensor's data in this format; QuantizationError where blocks do not divide its rows."""
    return math.prod(tensor.shape[:-1]) * GGML_FORMATS[format_name].row_bytes(tensor.columns)


def total_bytes(tensors: Sequence[GgufTensor], formats: Mapping[str, str]) -> int:
    """Bytes of all tensors, with the formats that ``assign`` gave by tensor name."""
    return sum(tensor_bytes(tensor, formats[tensor.name]) for tensor in tensors)


def bits_per_weight(tensors: Sequence[GgufTensor], formats: Mapping[str, str]) -> float:
    """Stored bits a weight over the whole model, F32 tensors included: the number that llama.cpp prints."""
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return 8 * total_bytes(tensors, formats) / weights
