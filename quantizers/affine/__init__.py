"""Affine integer formats, in which ONNX, ExecuTorch and Core ML files store weights.

    from qwen3_export.quantizers.affine import AffineFormat

    int4 = AffineFormat(num_bits=4, group_size=32, scale_dtype="f16")
    codes, params = int4.encode(values)               # float32 [rows, columns] -> int8 codes, scales, zero points
    stored = int4.dequantize(codes, params)           # what a runtime will compute from them

How codes lie in a file is not decided here: see ``quantizers.packing``.
Importing this is light: kernels (and numba) are imported by the first fit.
"""

from __future__ import annotations

from qwen3_export.quantizers.affine.formats import AffineFormat
from qwen3_export.quantizers.affine.params import AffineParams
from qwen3_export.quantizers.affine.scale_dtypes import SCALE_DTYPES, ScaleDtype, round_scales

__all__ = ["SCALE_DTYPES", "AffineFormat", "AffineParams", "ScaleDtype", "round_scales"]
