"""GPTQ for any number format: the codes and parameters under which the output of a linear weight changes least.

For each row, (q - t) H (q - t)ᵀ is minimized, with H = Σ x xᵀ over calibration tokens and t the weights to aim at
(``hessian.py``). Columns are taken in slabs of 256:

1. *Forward.* The parameters of the slab's blocks are fitted to the targets. Codes are rounded column by column (GPTQ).
   Then parameters and codes of the slab are improved in turn, under a metric that already includes what later columns
   will make up for. Then they do make up for it: with E = (t_b - q_b) U_bb⁻¹, the targets of the columns after the slab
   lose E U_b,rest.
2. *Cycles.* If there are several slabs, each is improved again with all others fixed, now under the full Hessian.

Plain GPTQ stops after the column loop. The other steps remove 15 to 45 % of its error at 4 bits, and more below, most
of it through the scales, which no later column can make up for.

With an ``OutputMetric`` G it is tr(G (q - t) H (q - t)ᵀ) that is minimized: blocks of rows are solved one after the
other, and later ones make up for the errors of earlier ones (``outputs.py``).

Nothing guarantees that GPTQ beats plain rounding. Both are computed, and the better one on this metric is returned.

Shapes: # O out  I in  J columns of one slab
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from qwen3_export.errors import QuantizationError
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values
from qwen3_export.quantizers.gptq.hessian import InverseFactor, Moments, aim, factor_inverse
from qwen3_export.quantizers.gptq.outputs import OutputMetric, RowBlock, row_blocks
from qwen3_export.quantizers.gptq.slab import ROWS_PER_JOB, Slab, SlabMetric, improve_slab, start_slab
from qwen3_export.quantizers.params import join_columns, join_rows

__all__ = ["GptqResult", "GptqSettings", "gptq"]

SLAB_COLUMNS = 256
# How far a row moves to make up for others, of its own size. On the text it may cost nothing to move it anywhere.
MOST_MOVED = 0.5
LARGEST_GROUP = 512

Method = Literal["gptq", "rtn"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqSettings:
    """How a weight is solved.

    ``damping`` is a share of the Hessian's mean diagonal; ``step``, from 0 to 1, how far to aim at the fp32 model's
    outputs instead of the weight's own.

    ``rounds`` of improvement follow the column loop of each slab, and as many each of ``cycles`` over all slabs.
    """

    damping: float = 0.01
    step: float = 1.0
    rounds: int = 3
    cycles: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.damping <= 1:
            raise QuantizationError(f"`damping` {self.damping:g} is not between 0 and 1; 0.01 is usual")
        if not 0 <= self.step <= 1:
            raise QuantizationError(f"`step` {self.step:g} is not from 0 to 1")
        if self.rounds < 0 or self.cycles < 0:
            raise QuantizationError("`rounds` and `cycles` are counts; 0 turns them off")


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqResult:
    """Codes and parameters in the number format, and their errors.

    An error is tr(ΔW H ΔWᵀ) / tr(W H Wᵀ), with ΔW against the weights aimed at. ``method`` says whose codes these are:
    GPTQ's, or those of plain rounding ("rtn").
    """

    codes_OI: Codes
    params: Any
    method: Method
    error: float
    rtn_error: float
    damping: float


@torch.no_grad()
def gptq(
    weights_OI: Tensor,
    moments: Moments,
    number_format: NumberFormat,
    *,
    settings: GptqSettings = GptqSettings(),
    threads: int = 1,
    factor: InverseFactor | None = None,
    outputs: OutputMetric | None = None,
) -> GptqResult:
    """Quantize one linear weight.  Raises QuantizationError where the format does not fit its shape.

    The result does not depend on ``threads``. ``factor`` is the result of ``factor_inverse`` for the Hessian of
    ``moments`` and the damping of ``settings``; weights with the same inputs can share it. ``outputs`` says how errors
    of different outputs count; without it they count the same, and are independent.
    """
    number_format.check(tuple(weights_OI.shape))
    factor = factor or factor_inverse(moments.hessian_II, damping=settings.damping)
    target_OI = aim(weights_OI, moments, factor, step=settings.step)
    metric_II = moments.hessian_II / factor.mean
    metric_II.diagonal().add_(factor.damping)
    slabs = _slab_metrics(factor, number_format, target_OI.shape[1])
    problem = _Problem(factor=factor, metric_II=metric_II, slabs=slabs, number_format=number_format, settings=settings)
    blocks = () if outputs is None else row_blocks(outputs, together=number_format.rows_together)
    solved = _solve(problem, target_OI, blocks=blocks, threads=threads)
    plain = _round_to_nearest(weights_OI, metric_II, number_format)
    changes = [torch.from_numpy(number_format.dequantize(*found)) - target_OI for found in (solved, plain)]
    losses = [_loss(change_OI, metric_II, damping=factor.damping, outputs=outputs) for change_OI in changes]
    scale = _loss(weights_OI, metric_II, damping=factor.damping) or 1.0
    errors = [_loss(change_OI, metric_II, damping=factor.damping) / scale for change_OI in changes]
    is_better = losses[0] <= losses[1]
    codes_OI, params = solved if is_better else plain
    return GptqResult(
        codes_OI=codes_OI,
        params=params,
        method="gptq" if is_better else "rtn",
        error=errors[0] if is_better else errors[1],
        rtn_error=errors[1],
        damping=factor.damping,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Problem:
    """What is the same for all rows of a weight; ``metric_II`` is the damped Hessian, to a mean diagonal of 1."""

    factor: InverseFactor
    metric_II: Tensor
    slabs: Sequence[tuple[slice, SlabMetric]]
    number_format: NumberFormat
    settings: GptqSettings


def _solve(problem: _Problem, target_OI: Tensor, *, blocks: Sequence[RowBlock], threads: int) -> tuple[Codes, Any]:
    """Codes and parameters for some targets; with ``blocks``, those of later rows move with the errors before them."""
    if not blocks:
        return _solve_rows(problem, target_OI, threads=threads)
    left_OI, parts = target_OI.clone(), []
    for block in blocks:
        aimed_BI = _not_too_far(left_OI[block.rows], target_OI[block.rows])
        part = _solve_rows(problem, aimed_BI, threads=threads)
        error_BI = left_OI[block.rows] - torch.from_numpy(problem.number_format.dequantize(*part))
        left_OI[block.after] -= block.after_SB @ error_BI
        parts.append(part)
    return np.concatenate([codes_BI for codes_BI, _ in parts]), join_rows([params for _, params in parts])


def _not_too_far(moved_BI: Tensor, target_BI: Tensor) -> Tensor:
    """Targets that were moved for errors of other rows, but by no more than a share of their own size."""
    move_BI = moved_BI - target_BI
    most_B1 = MOST_MOVED * torch.linalg.vector_norm(target_BI, dim=1, keepdim=True)
    moved_B1 = torch.linalg.vector_norm(move_BI, dim=1, keepdim=True)
    return torch.where(moved_B1 <= most_B1, moved_BI, target_BI + move_BI * (most_B1 / moved_B1))


def _solve_rows(problem: _Problem, target_OI: Tensor, *, threads: int) -> tuple[Codes, Any]:
    settings, number_format = problem.settings, problem.number_format
    slabs = _forward(problem, target_OI, threads=threads)
    cycles = settings.cycles if settings.rounds and len(slabs) > 1 else 0
    for _ in range(cycles):
        slabs = _cycle(slabs, target_OI, problem.metric_II, number_format, rounds=settings.rounds, threads=threads)
    return _join([slab for _, slab in slabs])


Slabs = list[tuple[slice, Slab]]


def _forward(problem: _Problem, target_OI: Tensor, *, threads: int) -> Slabs:
    """Solve slab after slab, each for the targets that the slabs before it have left."""
    factor, number_format = problem.factor, problem.number_format
    left_OI = target_OI.clone()
    whole_rows = _fit_whole_rows(target_OI, factor, number_format)
    slabs = []
    for columns, metric in problem.slabs:
        target_RJ = _contiguous(left_OI[:, columns])
        slab = start_slab(number_format, target_RJ, metric=metric, params=whole_rows, threads=threads)
        gradient_RJ = _product(slab.values_RJ - target_RJ, metric.metric_JJ)
        slab = improve_slab(
            number_format,
            slab,
            gradient_RJ=gradient_RJ,
            metric_JJ=metric.metric_JJ,
            rounds=problem.settings.rounds,
            threads=threads,
        )
        error_OJ = torch.from_numpy(target_RJ - slab.values_RJ).double() @ factor.root_II[columns, columns]
        rest = slice(columns.stop, None)
        left_OI[:, rest] -= (error_OJ @ factor.upper_II[columns, rest]).float()
        slabs.append((columns, slab))
    return slabs


def _cycle(
    slabs: Slabs, target_OI: Tensor, metric_II: Tensor, number_format: NumberFormat, *, rounds: int, threads: int
) -> Slabs:
    """Improve each slab once more, with all others as they are."""
    values_OI = torch.cat([torch.from_numpy(slab.values_RJ) for _, slab in slabs], dim=1)
    gradient_OI = (values_OI - target_OI) @ metric_II
    improved = []
    for columns, slab in slabs:
        better = improve_slab(
            number_format,
            slab,
            gradient_RJ=_contiguous(gradient_OI[:, columns]),
            metric_JJ=_contiguous(metric_II[columns, columns]),
            rounds=rounds,
            threads=threads,
        )
        gradient_OI += torch.from_numpy(better.values_RJ - slab.values_RJ) @ metric_II[columns]
        improved.append((columns, better))
    return improved


def _slab_metrics(factor: InverseFactor, number_format: NumberFormat, columns: int) -> list[tuple[slice, SlabMetric]]:
    found = []
    for slab in _slab_columns(number_format, columns):
        root_JJ = factor.root_II[slab, slab]
        metric = SlabMetric(
            metric_JJ=_contiguous(root_JJ @ root_JJ.T), factor_JJ=_contiguous(factor.upper_II[slab, slab])
        )
        found.append((slab, metric))
    return found


def _slab_columns(number_format: NumberFormat, columns: int) -> list[slice]:
    """Slabs of whole blocks, about ``SLAB_COLUMNS`` wide."""
    size = _columns_of_block(number_format, columns) or 1
    width = size * max(1, SLAB_COLUMNS // size)
    return [slice(first, min(first + width, columns)) for first in range(0, columns, width)]


def _columns_of_block(number_format: NumberFormat, columns: int) -> int | None:
    """The columns of a block that is fitted by itself; None if parameters belong to whole rows.

    They do in palettes, whose tables serve all columns, and where groups are too wide for a slab.
    """
    size = number_format.columns_together or columns
    return size if number_format.codebook is not None and size <= LARGEST_GROUP else None


def _fit_whole_rows(target_OI: Tensor, factor: InverseFactor, number_format: NumberFormat) -> Any:
    """Parameters of whole rows, fitted once before the first slab; None if each slab has its own."""
    if _columns_of_block(number_format, target_OI.shape[1]) is not None:
        return None
    importance_I = _contiguous(factor.root_II.square().sum(dim=1))
    return number_format.fit(_contiguous(target_OI), importance_I, weighting="importance")


def _round_to_nearest(weights_OI: Tensor, metric_II: Tensor, number_format: NumberFormat) -> tuple[Codes, Any]:
    """Plain rounding, with parameters searched under the diagonal of the Hessian."""
    values_OI = _contiguous(weights_OI)
    params = number_format.fit(values_OI, _contiguous(metric_II.diagonal()), weighting="importance")
    return number_format.round(values_OI, params), params


def _join(slabs: Sequence[Slab]) -> tuple[Codes, Any]:
    """Codes and parameters of whole rows."""
    params = join_columns([slab.params for slab in slabs]) if slabs[0].owns_params else slabs[0].params
    return np.concatenate([slab.codes_RJ for slab in slabs], axis=1), params


def _loss(difference_OI: Tensor, metric_II: Tensor, *, damping: float, outputs: OutputMetric | None = None) -> float:
    """tr(ΔW H ΔWᵀ), or tr(G ΔW H ΔWᵀ) with the metric G of the outputs; of the Hessian without its damping."""
    product_OI = (difference_OI @ metric_II).sub_(difference_OI, alpha=damping)
    weighted_OI = difference_OI if outputs is None else outputs.times(difference_OI)
    return float(torch.sum(product_OI * weighted_OI, dtype=torch.float64))


def _product(left_RJ: Values, right_JJ: Values) -> Values:
    """A product; of few rows it is torch's, because numpy's threads wait for each other longer than it takes."""
    if len(left_RJ) > ROWS_PER_JOB:
        return np.asarray(left_RJ @ right_JJ, np.float32)
    product: Values = (torch.from_numpy(left_RJ) @ torch.from_numpy(right_JJ)).numpy()
    return product


def _contiguous(matrix: Tensor) -> Values:
    """A copy as an fp32 array."""
    return np.array(matrix.numpy(), np.float32, order="C")
