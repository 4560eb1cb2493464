"""GGML's block formats, which GGUF files store weights in.

    from qwen3_export.quantizers.ggml import GGML_FORMATS

    q4_k = GGML_FORMATS["Q4_K"]
    codes, params = q4_k.encode(values)               # float32 [rows, columns] -> int8 codes, scales, offsets
    stored = q4_k.dequantize(codes, params)           # what a runtime computes from them, to the last bit
    blocks = q4_k.pack(codes, params)                 # the bytes of a file, uint8 [rows, row_bytes]; see ``unpack``

Importing this is light: kernels (and numba) are imported by the first fit.
"""

from __future__ import annotations

from qwen3_export.quantizers.ggml.formats import GGML_FORMATS, GgmlFormat

__all__ = ["GGML_FORMATS", "GgmlFormat"]
