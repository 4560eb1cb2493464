"""What the model is expected to lose when one weight is rounded to a format, in nats of KL divergence a position.

With ΔW the error of rounding, x the weight's inputs, and g the gradients at its outputs (``backward``), the loss is
half the mean of (g · ΔW x)². The head's own loss needs no drawn tokens: where logits change by Δ, it is half the
variance of Δ under the model's distribution.

Errors of rounding are independent from row to row, so a loss is estimated from some rows: evenly spaced ones, and in
the head those of the likeliest tokens.

*What a solver leaves.* GPTQ lets later columns make up for the errors of earlier ones. Of the expected error
tr(ΔW H ΔWᵀ), equal in all columns before, the share that is left is  mean(1 / U_ii²) / mean(H_ii)  with H⁻¹ = UᵀU:
it depends on the inputs alone, and not on the format.

Shapes: T tokens of one window, P positions, I in, O out, R rows that are looked at, V vocabulary, D hidden
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from qwen3_export.calibration.sensitivity.backward import Passed
from qwen3_export.graph import Graph, Weight
from qwen3_export.parallel import run_jobs
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.gptq.hessian import factor_inverse
from qwen3_export.reference.model import head_logits
from qwen3_export.reference.weights import read_tensor

__all__ = ["head_losses", "left_by_solver", "looked_up_losses", "weight_losses"]

MAX_ROWS = 1024
MAX_HEAD_ROWS = 8192
HEAD_POSITIONS = 512
ROWS_PER_JOB = 64
DAMPING = 0.01

Formats = Sequence[NumberFormat]


def weight_losses(
    weight: Weight, formats: Formats, passed: Passed, *, positions: int, threads: int
) -> dict[str, float]:
    """The loss by each format's name; ``positions`` are those of all windows, also where few pass an expert."""
    rows = weight.shape[0]
    picked_R = np.arange(rows) if passed.spread is not None else _evenly(rows, formats, MAX_ROWS)
    weights_RI = _read_rows(weight, picked_R)
    scale = rows / len(picked_R) / positions / 2
    columns = torch.from_numpy(picked_R)
    losses = {}
    for number_format in formats:
        error_RI = _rounding_error(weights_RI, number_format, threads=threads)
        total = 0.0
        for i, (x_TI, gradient_TO) in enumerate(zip(passed.inputs, passed.gradients, strict=True)):
            change_TR = x_TI @ error_RI.T
            seen_TR = gradient_TO[:, columns] if passed.spread is None else gradient_TO
            change_TR = change_TR if passed.spread is None else passed.spread(i, change_TR)
            total += float((change_TR * seen_TR).sum(dim=1).double().square().sum())
        losses[number_format.name] = total * scale
    return losses


def head_losses(graph: Graph, formats: Formats, passed: Passed, *, threads: int) -> dict[str, float]:
    """The loss of the output head by what it changes in the logits alone."""
    hidden_TD = torch.cat(list(passed.inputs))
    step = max(1, len(hidden_TD) // HEAD_POSITIONS)
    hidden_PD = hidden_TD[::step]
    p_PV = torch.softmax(head_logits(graph, hidden_PD), dim=-1)
    mass_V = (p_PV * (1 - p_PV)).sum(dim=0)
    picked_R = _likeliest(mass_V, formats)
    p_PR = p_PV[:, torch.from_numpy(picked_R)]
    scale = float(mass_V.sum() / mass_V[torch.from_numpy(picked_R)].sum().clamp_min(1e-30)) / len(hidden_PD) / 2
    weights_RD = _read_rows(graph.head, picked_R)
    losses = {}
    for number_format in formats:
        change_PR = hidden_PD @ _rounding_error(weights_RD, number_format, threads=threads).T
        mean_P = (p_PR * change_PR).sum(dim=1)
        losses[number_format.name] = float((p_PR * change_PR.square()).sum(dim=1).sub_(mean_P.square()).sum()) * scale
    return losses


def looked_up_losses(
    weight: Weight, formats: Formats, passed: Passed, *, positions: int, threads: int
) -> dict[str, float]:
    """The loss of an embedding by what it changes in the hidden states that the layers begin with."""
    tokens_P = torch.cat(list(passed.inputs))[:, 0].numpy()
    gradient_PD = torch.cat(list(passed.gradients))
    together = _rows_together(formats, weight.shape[0])
    groups = np.unique(tokens_P // together)
    picked_R = _rows_of(groups, together, weight.shape[0])
    places = torch.from_numpy(np.searchsorted(picked_R, tokens_P))
    weights_RD = _read_rows(weight, picked_R)
    losses = {}
    for number_format in formats:
        error_RD = _rounding_error(weights_RD, number_format, threads=threads)
        changed_P = (error_RD[places] * gradient_PD).sum(dim=1)
        losses[number_format.name] = float(changed_P.double().square().sum()) / positions / 2
    return losses


def left_by_solver(passed: Passed) -> float:
    """The share of a rounding error that GPTQ is expected to leave for these inputs, between 0 and 1."""
    columns = passed.inputs[0].shape[1]
    hessian_II, tokens = torch.zeros(columns, columns), 0
    for x_TI in passed.inputs:
        hessian_II += x_TI.T @ x_TI
        tokens += len(x_TI)
    # With few tokens for its columns a Hessian promises more than others will keep.
    damping = DAMPING + columns / (4 * max(tokens, 1))
    factor = factor_inverse(hessian_II, damping=min(damping, 1.0))
    return float(factor.upper_II.diagonal().square().reciprocal().mean()) / (1 + factor.damping)


def _rounding_error(weights_RI: np.ndarray, number_format: NumberFormat, *, threads: int) -> Tensor:
    """Rounded values minus values, [R, I]; rows that share parameters are rounded together."""
    error_RI = np.empty_like(weights_RI)
    together = number_format.rows_together or len(weights_RI)
    size = max(1, ROWS_PER_JOB // together) * together

    def work(rows: slice) -> None:
        part_RI = weights_RI[rows]
        error_RI[rows] = number_format.dequantize(*number_format.encode(part_RI)) - part_RI

    jobs = [slice(first, min(first + size, len(weights_RI))) for first in range(0, len(weights_RI), size)]
    run_jobs(work, jobs, threads=min(threads, len(jobs)))
    return torch.from_numpy(error_RI)


def _evenly(rows: int, formats: Formats, most: int) -> np.ndarray:
    """At most about ``most`` rows, evenly spaced, in whole groups of rows that share parameters."""
    together = _rows_together(formats, rows)
    groups = -(-rows // together)
    wanted = min(groups, max(1, most // together))
    picked = np.unique(np.linspace(0, groups - 1, wanted).round().astype(np.int64))
    return _rows_of(picked, together, rows)


def _likeliest(mass_V: Tensor, formats: Formats) -> np.ndarray:
    """The rows of a head that count most, in whole groups, in ascending order."""
    together = _rows_together(formats, len(mass_V))
    groups = -(-len(mass_V) // together)
    padded = torch.zeros(groups * together)
    padded[: len(mass_V)] = mass_V
    wanted = min(groups, max(1, MAX_HEAD_ROWS // together))
    picked = torch.topk(padded.view(groups, together).sum(dim=1), wanted).indices.sort().values.numpy()
    return _rows_of(picked, together, len(mass_V))


def _rows_of(groups: np.ndarray, together: int, rows: int) -> np.ndarray:
    """The rows of some groups of ``together`` neighbours; the last group may be short."""
    found = (groups[:, None] * together + np.arange(together)).ravel()
    return found[found < rows]


def _rows_together(formats: Formats, rows: int) -> int:
    """A number of neighbouring rows that is whole groups in every format."""
    return int(np.lcm.reduce([number_format.rows_together or rows for number_format in formats]))


def _read_rows(weight: Weight, picked_R: np.ndarray) -> np.ndarray:
    """Some rows of a weight, in fp32; neighbours are read in one go."""
    runs: Iterator[np.ndarray] = iter(np.split(picked_R, np.flatnonzero(np.diff(picked_R) > 1) + 1))
    parts = [read_tensor(weight, slice(int(run[0]), int(run[-1]) + 1)).numpy() for run in runs]
    return np.ascontiguousarray(np.concatenate(parts))
