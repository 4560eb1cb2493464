"""GGML's number formats: what a GGUF file may store a weight as.

    from qwen3_export.quantizers.ggml import GGML_FORMATS

    blocks = GGML_FORMATS["Q4_K"].encode(values)      # float32 [rows, columns] -> uint8 [rows, row_bytes]
    stored = GGML_FORMATS["Q4_K"].decode(blocks)      # what a runtime will read, to the last bit

Importing this is light: kernels (and numba) are imported by the first encode or decode of a format.
"""

from __future__ import annotations

from qwen3_export.quantizers.ggml.formats import GGML_FORMATS, GgmlFormat

__all__ = ["GGML_FORMATS", "GgmlFormat"]
