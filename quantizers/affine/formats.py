"""The affine integer formats, as one configurable class.

Shapes: # R rows  I columns  J columns of one slab  G groups a row

This file imports no kernels; methods import what they need when they are called.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.affine.params import AffineParams
from qwen3_export.quantizers.affine.scale_dtypes import LARGEST_WEIGHT, SCALE_DTYPES, ScaleDtype, round_scales
from qwen3_export.quantizers.formats import Arrays, ArrayType, Codebook, Codes, Values, Weighting

__all__ = ["AffineFormat"]

Search = Literal["full", "range"]

_USUAL_GROUPS = (16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineFormat:
    """Integers of ``num_bits`` with a scale, and perhaps a zero point, for each group of columns of a row.

    ``group_size`` None makes a whole row one group (per channel). Symmetric formats have no zero point;
    ``narrow`` leaves their lowest code out (-7 … 7), and ``negative_scales`` lets the sign of a scale say which end of
    -8 … 7 has the extra level: some runtimes read that correctly (MatMulNBits, GGML), others refuse it (XNNPACK).
    ``search`` "range" takes scales from the smallest and largest weight alone, as plain rounding does.

    What the methods do is said at ``NumberFormat``; ``fit`` and ``round`` work on any whole number of groups.
    """

    num_bits: int
    group_size: int | None = None
    symmetric: bool = True
    scale_dtype: ScaleDtype = "f32"
    narrow: bool = False
    negative_scales: bool = False
    search: Search = "full"

    def __post_init__(self) -> None:
        if self.num_bits not in range(2, 9):
            raise QuantizationError(f"affine formats have 2 to 8 bits, not {self.num_bits}")
        if self.group_size is not None and self.group_size < 1:
            raise QuantizationError(f"`group_size` {self.group_size} is not positive; leave it out for one group a row")
        if self.scale_dtype not in SCALE_DTYPES:
            raise QuantizationError(f"`scale_dtype` {self.scale_dtype!r} is not one of {', '.join(SCALE_DTYPES)}")
        if self.search not in get_args(Search):
            raise QuantizationError(f"`search` {self.search!r} is not one of {', '.join(get_args(Search))}")
        if not self.symmetric and (self.narrow or self.negative_scales):
            raise QuantizationError(
                "`narrow` and `negative_scales` are for symmetric formats; there is a zero point here"
            )
        if self.narrow and self.negative_scales:
            raise QuantizationError(
                "a narrow range is the same under both signs; `negative_scales` gains nothing there"
            )

    @property
    def name(self) -> str:
        """Such as ``int4_g32``, ``int4_g32_asym_bf16``, ``int8_channel``."""
        parts = [f"int{self.num_bits}", "channel" if self.group_size is None else f"g{self.group_size}"]
        parts += ["asym"] * (not self.symmetric) + ["narrow"] * self.narrow + ["signed"] * self.negative_scales
        parts += [self.scale_dtype] * (self.scale_dtype != "f32") + ["range"] * (self.search == "range")
        return "_".join(parts)

    @property
    def code_low(self) -> int:
        """The lowest code, -8 for four bits."""
        return -(1 << (self.num_bits - 1)) + self.narrow

    @property
    def code_high(self) -> int:
        """The highest code, 7 for four bits."""
        return (1 << (self.num_bits - 1)) - 1

    @property
    def is_float(self) -> bool:
        return False

    @property
    def rows_together(self) -> int:
        return 1

    @property
    def columns_together(self) -> int | None:
        return self.group_size

    @property
    def codebook(self) -> Codebook:
        return Codebook(np.float32(self.code_low), np.float32(self.code_high), np.empty(0, np.float32))

    def columns_a_group(self, columns: int) -> int:
        """How many columns share a scale, in rows of this many; QuantizationError where they do not divide."""
        size = self.group_size or columns
        if columns % size:
            raise QuantizationError(
                f"in_features {columns} is not a multiple of `group_size` {size}; {_advice(columns)}"
            )
        return size

    def check(self, shape: tuple[int, ...]) -> None:
        self.columns_a_group(shape[-1])

    def bits_per_weight(self, shape: tuple[int, ...]) -> float:
        """Scales and zero points included, before any padding of a storage form."""
        beside = (32 if self.scale_dtype == "f32" else 16) + (0 if self.symmetric else self.num_bits)
        return self.num_bits + beside / self.columns_a_group(shape[-1])

    def fit(
        self, values_RI: Values, importance: Values | None = None, *, weighting: Weighting = "usual"
    ) -> AffineParams:
        """Scales and zero points of groups; those of a row do not depend on the other rows.

        Raises QuantizationError where the group size does not divide, a weight is no finite number, or its scale would
        be beyond the scale dtype.
        """
        from qwen3_export.quantizers.affine import fitting

        size = self.columns_a_group(values_RI.shape[1])
        self._refuse_huge(values_RI)
        return fitting.fit(
            values_RI,
            importance,
            group_size=size,
            limits=fitting.Limits(low=self.code_low, high=self.code_high, symmetric=self.symmetric),
            scale_dtype=self.scale_dtype,
            negative_scales=self.negative_scales,
            scan=self.search == "full",
        )

    def round(self, values_RI: Values, params: AffineParams) -> Codes:
        from qwen3_export.quantizers.affine import codes

        codes_RI = np.empty(values_RI.shape, np.int8)
        codes.round_to_codes(
            codes_RI,
            np.ascontiguousarray(values_RI, np.float32),
            np.ascontiguousarray(params.scale_RG),
            np.ascontiguousarray(params.zero_point_RG),
            self.code_low,
            self.code_high,
        )
        return codes_RI

    def encode(self, values_RI: Values, importance: Values | None = None) -> tuple[Codes, AffineParams]:
        params = self.fit(values_RI, importance)
        return self.round(values_RI, params), params

    def dequantize(self, codes_RI: Codes, params: AffineParams) -> Values:
        """``scale * (code - zero_point)`` in float32: a single rounding, as in a runtime."""
        rows, groups = params.scale_RG.shape
        codes_RGI = codes_RI.reshape(rows, groups, codes_RI.shape[1] // groups).astype(np.float32)
        levels_RGI = codes_RGI - params.zero_point_RG[:, :, None].astype(np.float32)
        return (levels_RGI * params.scale_RG[:, :, None]).reshape(codes_RI.shape)

    def refit(
        self, codes_RJ: Codes, params: AffineParams, *, gradient_RJ: Values, metric_JJ: Values
    ) -> tuple[AffineParams, Values]:
        """Better scales; zero points stay."""
        from qwen3_export.quantizers.affine.refit import refit_scales

        return refit_scales(
            codes_RJ, params, gradient_RJ=gradient_RJ, metric_JJ=metric_JJ, scale_dtype=self.scale_dtype
        )

    def changes_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[R, G], of the scales."""
        return shape[0], shape[1] // self.columns_a_group(shape[1])

    def changed(self, params: AffineParams, changes: Values) -> AffineParams:
        scale_RG = round_scales(params.scale_RG * (1 + changes), self.scale_dtype)
        return AffineParams(scale_RG=scale_RG, zero_point_RG=params.zero_point_RG)

    def by_changes(self, codes_RI: Codes, params: AffineParams, gradient_RI: Values) -> Values:
        by_value_RI = gradient_RI * self.dequantize(codes_RI, params)
        by_scale_RG: Values = by_value_RI.reshape(*params.scale_RG.shape, -1).sum(axis=2)
        return by_scale_RG

    def to_arrays(self, codes_RI: Codes, params: AffineParams) -> dict[str, NDArray[Any]]:
        return {"codes": codes_RI, "scales": params.scale_RG, "zero_points": params.zero_point_RG}

    def from_arrays(self, arrays: Arrays) -> tuple[Codes, AffineParams]:
        return arrays["codes"], AffineParams(scale_RG=arrays["scales"], zero_point_RG=arrays["zero_points"])

    def array_types(self, shape: tuple[int, ...]) -> dict[str, ArrayType]:
        rows, columns = shape
        groups = (rows, columns // self.columns_a_group(columns))
        return {
            "codes": ArrayType("|i1", shape),
            "scales": ArrayType("<f4", groups),
            "zero_points": ArrayType("|i1", groups),
        }

    def _refuse_huge(self, values_RI: Values) -> None:
        largest = max(values_RI.max(initial=0), -values_RI.min(initial=0))
        limit = LARGEST_WEIGHT[self.scale_dtype]
        if not largest <= limit:
            raise QuantizationError(
                f"{self.name}: a weight of magnitude {largest:g} is beyond what its {self.scale_dtype} scales allow "
                f"({limit:g}); keep this weight unquantized"
            )


def _advice(columns: int) -> str:
    """The group sizes that would do."""
    sizes = [size for size in _USUAL_GROUPS if columns % size == 0]
    if not sizes:
        sizes = [size for size in range(8, 257) if columns % size == 0][-3:]
    if not sizes:
        return "leave `group_size` out for one group a row"
    *others, last = map(str, sizes)
    return f"use {', '.join(others)} or {last}" if others else f"use {last}"
