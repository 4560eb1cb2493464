"""GPTQ on one slab of columns: fit parameters, round, and improve codes and parameters in turn.

A slab is some whole blocks of a number format, 256 columns where the format allows it. ``start_slab`` fits parameters
to the targets and rounds column by column; ``improve_slab`` alternates between the best parameters for the codes (the
format's ``refit``) and the best codes for the parameters (``codes.py``). The metric and the gradient that it is given
include the effect on columns outside the slab.

Formats whose values are scales times levels take part in all of this, except that scales of whole rows stay as they
were fitted. Palettes, whose tables are shared by rows, are only rounded column by column.

Shapes: # R rows  J columns of one slab  G groups of one slab
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen3_export.parallel import run_jobs
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values
from qwen3_export.quantizers.gptq.codes import descend_codes, round_columns
from qwen3_export.quantizers.params import join_rows

__all__ = ["ROWS_PER_JOB", "Slab", "SlabMetric", "improve_slab", "start_slab"]

# Jobs are small where few rows are solved at a time.
ROWS_PER_JOB, FEW_ROWS_PER_JOB = 64, 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Slab:
    """Codes, values and parameters of one slab; the parameters are its own, or (not ``owns_params``) of whole rows."""

    codes_RJ: Codes
    values_RJ: Values
    params: Any
    owns_params: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SlabMetric:
    """The cost of errors in the slab's columns, after later columns have made up for them as well as they can.

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
    book = number_format.codebook
    if book is None:
        slab = _round_slowly(number_format, targets_RJ, params=params, factor_JJ=metric.factor_JJ)
        return replace(slab, owns_params=owns_params)
    codes_RJ, values_RJ = np.empty(targets_RJ.shape, np.int8), np.empty(targets_RJ.shape, np.float32)
    scale_RG, offset_RG = _scales(params)

    def work(rows: slice) -> None:
        round_columns(
            codes_RJ[rows], values_RJ[rows], targets_RJ[rows], metric.factor_JJ, scale_RG[rows], offset_RG[rows], book
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
    """The slab after ``rounds`` of improvements, none of which raises the error; palettes come back unchanged."""
    book = number_format.codebook
    if book is None:
        return slab
    codes_RJ, values_RJ = slab.codes_RJ.copy(), slab.values_RJ.copy()
    improved: dict[int, Any] = {}

    def work(rows: slice) -> None:
        params, gradient = slab.params.rows(rows, of=len(codes_RJ)), gradient_RJ[rows].copy()
        for _ in range(rounds):
            if slab.owns_params:
                params, gradient = number_format.refit(
                    codes_RJ[rows], params, gradient_RJ=gradient, metric_JJ=metric_JJ
                )
                values_RJ[rows] = number_format.dequantize(codes_RJ[rows], params)
            descend_codes(codes_RJ[rows], values_RJ[rows], gradient, metric_JJ, *_scales(params), book)
        improved[rows.start] = params

    _for_rows(work, len(codes_RJ), threads=threads)
    params = join_rows([improved[first] for first in sorted(improved)]) if slab.owns_params else slab.params
    return replace(slab, codes_RJ=codes_RJ, values_RJ=values_RJ, params=params)


def _round_slowly(number_format: NumberFormat, targets_RJ: Values, *, params: Any, factor_JJ: Values) -> Slab:
    """The column loop of GPTQ in numpy, for formats that the kernels here do not know."""
    left_RJ = targets_RJ.copy()
    codes: list[Codes] = []
    values_RJ = np.empty_like(targets_RJ)
    for j in range(targets_RJ.shape[1]):
        code_R1 = number_format.round(left_RJ[:, j : j + 1], params)
        values_RJ[:, j : j + 1] = number_format.dequantize(code_R1, params)
        error_R = (left_RJ[:, j] - values_RJ[:, j]) / factor_JJ[j, j]
        left_RJ[:, j:] -= error_R[:, None] * factor_JJ[j, j:]
        codes.append(code_R1)
    return Slab(codes_RJ=np.concatenate(codes, axis=1), values_RJ=values_RJ, params=params)


def _scales(params: Any) -> tuple[Values, Values]:
    """Scales and offsets of groups, [R, G] each, as kernels take them."""
    return np.ascontiguousarray(params.scale_RG), np.ascontiguousarray(params.offset_RG)


def _for_rows(work: Callable[[slice], None], rows: int, *, threads: int) -> None:
    size = ROWS_PER_JOB if rows > ROWS_PER_JOB else FEW_ROWS_PER_JOB
    jobs = [slice(first, min(first + size, rows)) for first in range(0, rows, size)]
    run_jobs(work, jobs, threads=min(threads, len(jobs)))
