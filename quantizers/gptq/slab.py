"""One slab of columns on its way through GPTQ: codes and parameters, and the moves that improve them.

A slab is some whole blocks of a number format, 256 columns where the format allows it.  ``start_slab`` fits
parameters to the targets and rounds column by column; ``improve_slab`` alternates between the best integers and
scales for the codes and the best codes for the scales (``scales``, ``codes``), under a metric and a
gradient that tell what the columns outside make of it.

GGML's block formats and affine integer formats take part in all of it, these without moving zero points, and with the
scales that were fitted where whole rows share them; palettes, whose tables are shared by rows, are rounded column by
column.

Shapes: # R rows  J columns of one slab  S blocks of one slab  G groups of one slab
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen3_export.parallel import run_jobs
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.affine.refit import refit_scales
from qwen3_export.quantizers.ggml import GgmlFormat
from qwen3_export.quantizers.ggml.packing import effective_params
from qwen3_export.quantizers.ggml.params import BlockParams
from qwen3_export.quantizers.gptq.codes import Codebook, descend_codes, round_columns
from qwen3_export.quantizers.gptq.scales import SubRange, choose_subs, refit_blocks
from qwen3_export.quantizers.weights.coded import CodedFormat

__all__ = ["NumberFormat", "Slab", "SlabMetric", "improve_slab", "start_slab"]

Values = NDArray[np.float32]
Codes = NDArray[Any]  # int8; indices into palettes are uint8
NumberFormat = GgmlFormat | CodedFormat

ROWS_PER_JOB = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """The state after some moves; ``params`` are the format's own, of this slab alone or of whole rows."""

    codes_RJ: Codes
    values_RJ: Values
    params: Any
    owns_params: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabMetric:
    """What an error in the slab's columns costs once later columns have made up for it as well as they can.

    ``factor_JJ`` is the slab's part U of the factor of the inverse Hessian, ``metric_JJ`` is (U'U)⁻¹.
    """

    metric_JJ: Values
    factor_JJ: Values


def start_slab(
    number_format: NumberFormat, targets_RJ: Values, *, metric: SlabMetric, params: Any = None, threads: int = 1
) -> Slab:
    """Fit parameters to the targets, unless those of whole rows are given, and round column by column."""
    owns_params = params is None
    if owns_params:
        importance_J = np.ascontiguousarray(metric.metric_JJ.diagonal())
        params = number_format.fit(targets_RJ, importance_J, weighting="importance")
    if not isinstance(number_format, GgmlFormat | AffineFormat):
        return _round_slowly(number_format, targets_RJ, params=params, factor_JJ=metric.factor_JJ)
    codes_RJ, values_RJ = np.empty(targets_RJ.shape, np.int8), np.empty(targets_RJ.shape, np.float32)
    scale_RG, offset_RG = np.ascontiguousarray(params.scale_RG), np.ascontiguousarray(params.offset_RG)
    book, factor_JJ = _codebook(number_format), metric.factor_JJ

    def work(rows: slice) -> None:
        round_columns(
            codes_RJ[rows], values_RJ[rows], targets_RJ[rows], factor_JJ, scale_RG[rows], offset_RG[rows], book
        )

    _for_rows(work, len(targets_RJ), threads=threads)
    return Slab(codes_RJ=codes_RJ, values_RJ=values_RJ, params=params, owns_params=owns_params)


def improve_slab(
    number_format: NumberFormat,
    slab: Slab,
    *,
    gradient_RJ: Values,
    metric_JJ: Values,
    rounds: int,
    threads: int = 1,
) -> Slab:
    """The slab after ``rounds`` of moves, none of which raises the error; palettes come back as they were."""
    if isinstance(number_format, GgmlFormat):
        return _improve_blocks(
            number_format, slab, gradient_RJ=gradient_RJ.copy(), metric_JJ=metric_JJ, rounds=rounds, threads=threads
        )
    if isinstance(number_format, AffineFormat):
        return _improve_affine(
            number_format, slab, gradient_RJ=gradient_RJ.copy(), metric_JJ=metric_JJ, rounds=rounds, threads=threads
        )
    return slab


def _improve_blocks(
    number_format: GgmlFormat, slab: Slab, *, gradient_RJ: Values, metric_JJ: Values, rounds: int, threads: int
) -> Slab:
    shape, book = number_format.shape, _codebook(number_format)
    limits = SubRange(shape.sub_low, shape.sub_high, shape.sub_high if shape.has_offset else 0)
    codes_RJ, values_RJ = slab.codes_RJ.copy(), slab.values_RJ.copy()
    params = _Numbers.of(slab.params, groups=codes_RJ.shape[1] // shape.group_size)

    def work(rows: slice) -> None:
        codes, values, gradient = codes_RJ[rows], values_RJ[rows], gradient_RJ[rows]
        numbers = params.rows(rows)
        for _ in range(rounds):
            if shape.has_subs:
                choose_subs(values, gradient, codes, metric_JJ, *numbers.arrays, limits, book)
            refit_blocks(values, gradient, codes, metric_JJ, *numbers.arrays, book)
            scale_RG, offset_RG = numbers.effective()
            descend_codes(codes, values, gradient, metric_JJ, scale_RG, offset_RG, book)

    _for_rows(work, len(codes_RJ), threads=threads)
    return Slab(codes_RJ=codes_RJ, values_RJ=values_RJ, params=params.stored(slab.params))


def _improve_affine(
    number_format: AffineFormat, slab: Slab, *, gradient_RJ: Values, metric_JJ: Values, rounds: int, threads: int
) -> Slab:
    book = _codebook(number_format)
    codes_RJ, values_RJ = slab.codes_RJ.copy(), slab.values_RJ.copy()
    params = slab.params.copy()

    def work(rows: slice) -> None:
        numbers, gradient = params.rows(rows, of=len(codes_RJ)), gradient_RJ[rows]
        for _ in range(rounds):
            if slab.owns_params:
                numbers, gradient = refit_scales(
                    codes_RJ[rows],
                    numbers,
                    gradient_RJ=gradient,
                    metric_JJ=metric_JJ,
                    scale_dtype=number_format.scale_dtype,
                )
                values_RJ[rows] = number_format.dequantize(codes_RJ[rows], numbers)
            scale_RG, offset_RG = np.ascontiguousarray(numbers.scale_RG), np.ascontiguousarray(numbers.offset_RG)
            descend_codes(codes_RJ[rows], values_RJ[rows], gradient, metric_JJ, scale_RG, offset_RG, book)
        params.scale_RG[rows] = numbers.scale_RG

    _for_rows(work, len(codes_RJ), threads=threads)
    return replace(slab, codes_RJ=codes_RJ, values_RJ=values_RJ, params=params if slab.owns_params else slab.params)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """The numbers of ``BlockParams`` in arrays that kernels may change; ones or zeros where a format has none."""

    scale_RS: Values
    offset_RS: Values
    sub_scale_RG: NDArray[np.int16]
    sub_offset_RG: NDArray[np.int16]

    @staticmethod
    def of(params: BlockParams, *, groups: int) -> _Numbers:
        rows = params.block_scale_RS.shape[0]
        has_offset = params.block_offset_RS is not None
        ones_RG = np.ones((rows, groups), np.int16)
        scale, offset = params.sub_scale_RG, params.sub_offset_RG
        return _Numbers(
            scale_RS=params.block_scale_RS.copy(),
            offset_RS=np.zeros_like(params.block_scale_RS)
            if params.block_offset_RS is None
            else params.block_offset_RS.copy(),
            sub_scale_RG=ones_RG if scale is None else scale.copy(),
            sub_offset_RG=offset.copy() if offset is not None else ones_RG * np.int16(has_offset),
        )

    @property
    def arrays(self) -> tuple[Values, Values, NDArray[np.int16], NDArray[np.int16]]:
        """In the order in which kernels take them."""
        return self.scale_RS, self.offset_RS, self.sub_scale_RG, self.sub_offset_RG

    def rows(self, rows: slice) -> _Numbers:
        """Views of some rows."""
        return _Numbers(
            scale_RS=self.scale_RS[rows],
            offset_RS=self.offset_RS[rows],
            sub_scale_RG=self.sub_scale_RG[rows],
            sub_offset_RG=self.sub_offset_RG[rows],
        )

    def effective(self) -> tuple[Values, Values]:
        """Scales and offsets of the groups."""
        params = effective_params(
            block_scale_RS=self.scale_RS,
            block_offset_RS=self.offset_RS,
            sub_scale_RG=self.sub_scale_RG,
            sub_offset_RG=self.sub_offset_RG,
        )
        return params.scale_RG, params.offset_RG

    def stored(self, like: BlockParams) -> BlockParams:
        """As the format's parameters, with None where ``like`` has it."""
        return effective_params(
            block_scale_RS=self.scale_RS,
            block_offset_RS=None if like.block_offset_RS is None else self.offset_RS,
            sub_scale_RG=None if like.sub_scale_RG is None else self.sub_scale_RG,
            sub_offset_RG=None if like.sub_offset_RG is None else self.sub_offset_RG,
        )


def _round_slowly(number_format: NumberFormat, targets_RJ: Values, *, params: Any, factor_JJ: Values) -> Slab:
    """GPTQ's columns in numpy, for formats whose rounding no kernel here knows."""
    left_RJ = targets_RJ.copy()
    codes: list[Codes] = []
    values_RJ = np.empty_like(targets_RJ)
    for j in range(targets_RJ.shape[1]):
        code_R1: Any = number_format.round(left_RJ[:, j : j + 1], params)
        values_RJ[:, j : j + 1] = number_format.dequantize(code_R1, params)
        error_R = (left_RJ[:, j] - values_RJ[:, j]) / factor_JJ[j, j]
        left_RJ[:, j:] -= error_R[:, None] * factor_JJ[j, j:]
        codes.append(code_R1)
    return Slab(codes_RJ=np.concatenate(codes, axis=1), values_RJ=values_RJ, params=params)


def _codebook(number_format: GgmlFormat | AffineFormat) -> Codebook:
    if isinstance(number_format, AffineFormat):
        low, high, levels = number_format.code_low, number_format.code_high, None
    else:
        shape = number_format.shape
        low, high, levels = shape.code_low, shape.code_high, shape.levels
    return Codebook(np.float32(low), np.float32(high), np.array(levels or (), np.float32))


def _for_rows(work: Callable[[slice], None], rows: int, *, threads: int) -> None:
    jobs = [slice(first, first + ROWS_PER_JOB) for first in range(0, rows, ROWS_PER_JOB)]
    run_jobs(work, jobs, threads=min(threads, len(jobs)))
