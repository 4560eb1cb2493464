"""Palettes: weights as indices into lookup tables, as Core ML stores them for the Neural Engine.

    from qwen3_export.quantizers.palette import PaletteFormat

    palette = PaletteFormat(num_bits=4, rows_per_table=16)
    codes, params = palette.encode(values)            # float32 [rows, columns] -> uint8 indices, tables
    stored = palette.dequantize(codes, params)

Importing this is light: kernels (and numba) are imported by the first fit.
"""

from __future__ import annotations

from qwen3_export.quantizers.palette.formats import PaletteFormat, PaletteParams

__all__ = ["PaletteFormat", "PaletteParams"]
