"""Sizes of tensors in a GGUF file, known before anything is quantized.

Only tensor data is counted: metadata and the tokenizer add some megabytes, padding almost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.targets.gguf.names import GgufTensor

__all__ = ["bits_per_weight", "tensor_bytes", "total_bytes"]


def tensor_bytes(tensor: GgufTensor, format_name: str) -> int:
    """Bytes of one tensor's data in a format. Raises QuantizationError if blocks do not divide its rows."""
    return math.prod(tensor.shape[:-1]) * GGML_FORMATS[format_name].row_bytes(tensor.columns)


def total_bytes(tensors: Sequence[GgufTensor], formats: Mapping[str, str]) -> int:
    """Bytes of all tensors, in the formats that ``assign`` chose by tensor name."""
    return sum(tensor_bytes(tensor, formats[tensor.name]) for tensor in tensors)


def bits_per_weight(tensors: Sequence[GgufTensor], formats: Mapping[str, str]) -> float:
    """Stored bits per weight over the whole model, F32 tensors included, as llama.cpp prints it."""
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    return 8 * total_bytes(tensors, formats) / weights
