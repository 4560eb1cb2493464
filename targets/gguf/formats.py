"""The number formats that a GGUF file may hold, by ggml's names, and the numbers that stand for them in the file.

Source: ``enum ggml_type`` in llama.cpp's ``ggml/include/ggml.h``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qwen3_export.quantizers.floats import FLOATS
from qwen3_export.quantizers.formats import PackedFormat
from qwen3_export.quantizers.ggml import GGML_FORMATS

__all__ = ["FORMATS", "TYPE_IDS"]

TYPE_IDS: Mapping[str, int] = MappingProxyType(
    {
        "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10, "Q3_K": 11, "Q4_K": 12,
        "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
    }
)  # fmt: skip

_ALL: Mapping[str, PackedFormat] = {**FLOATS, **GGML_FORMATS}
FORMATS: Mapping[str, PackedFormat] = MappingProxyType({name: _ALL[name] for name in TYPE_IDS})
