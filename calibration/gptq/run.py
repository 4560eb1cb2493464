"""The state of a GPTQ run: what is solved so far, and how one weight is solved.

Shapes: O out, I in
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np

from qwen3_export.calibration.gptq.folder import GptqFolder
from qwen3_export.calibration.gptq.outputs import OutputFolder
from qwen3_export.calibration.gptq.report import RoutingReport, WeightReport
from qwen3_export.calibration.moments import MomentSums
from qwen3_export.calibration.window_states import MEMORY_LIMIT, WindowStates
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind, Role, Weight, module_name
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.gptq.hessian import InverseFactor, Moments, factor_inverse
from qwen3_export.quantizers.gptq.solver import GptqResult, GptqSettings, gptq
from qwen3_export.quantizers.params import join_rows
from qwen3_export.reference.weights import Linear, read_linear, read_tensor

__all__ = ["GptqRun", "QkNorm", "SequentialSettings"]

QkNorm = Literal["off", "averaged", "grouped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequentialSettings:
    """How a run calibrates.

    ``qk_norm`` weighs the tokens of q_proj and k_proj as their norms do: not at all ("off"), averaged over heads, or
    grouped, for each key head and its query heads separately. With ``take_back_residual`` o_proj and down_proj also
    make up for errors of the layers before them. An expert of a mixture is solved for ``expert_shrinkage`` tokens of
    the layer's average besides its own. With ``output_tokens``, it is measured on about so many tokens how errors of
    different outputs count together; otherwise they count the same. Token states beyond ``memory_limit`` bytes go to
    disk.
    """

    solver: GptqSettings = field(default_factory=GptqSettings)
    qk_norm: QkNorm = "averaged"
    take_back_residual: bool = True
    expert_shrinkage: float = 64.0
    output_tokens: int = 0
    memory_limit: int = MEMORY_LIMIT

    def __post_init__(self) -> None:
        if self.qk_norm not in get_args(QkNorm):
            raise QuantizationError(f"`qk_norm` {self.qk_norm!r} is not one of {', '.join(get_args(QkNorm))}")
        if self.expert_shrinkage < 0:
            raise QuantizationError(f"`expert_shrinkage` {self.expert_shrinkage:g} is negative; 0 turns it off")
        if self.output_tokens < 0:
            raise QuantizationError(f"`output_tokens` {self.output_tokens} is negative; 0 turns it off")

    def as_dict(self) -> dict[str, Any]:
        """The settings that results depend on, as one flat mapping."""
        own = asdict(self)
        del own["memory_limit"]
        solver: dict[str, Any] = own.pop("solver")
        return solver | own


@dataclass(slots=True, kw_only=True)
class GptqRun:
    """A run in progress; ``weights`` are the quantized weights so far, by name. Floats are there from the start."""

    graph: Graph
    formats: Mapping[str, NumberFormat]
    settings: SequentialSettings
    folder: GptqFolder
    lengths: Sequence[int]
    threads: int
    advance: Callable[[], None]
    outputs: OutputFolder | None = None
    weights: dict[str, Weight] = field(default_factory=dict)
    reports: dict[str, WeightReport] = field(default_factory=dict)
    routing: list[RoutingReport] = field(default_factory=list)

    def states(self, width: int) -> WindowStates:
        """Room for one vector of each token."""
        limit = self.settings.memory_limit
        return WindowStates(self.lengths, width, folder=self.folder.path, memory_limit=limit)

    def exact(self, kind: Kind, layer: int | None = None, expert: int | None = None) -> Linear:
        """A matrix of the checkpoint, ready to multiply."""
        return read_linear(self.graph[Role(kind, layer, expert)])

    def quantized(self, kind: Kind, layer: int | None = None, expert: int | None = None) -> Linear:
        """The same matrix with its stored values."""
        return read_linear(self.weights[module_name(Role(kind, layer, expert))])

    def needs(self, *roles: Role) -> bool:
        """Whether one of these weights is still to be solved; results of an earlier run are loaded first."""
        return any(self._is_open(role) for role in roles)

    def solve(self, roles: Sequence[Role], sums: Sequence[MomentSums]) -> None:
        """Solve those of these weights that are not done yet. They share their inputs, so the Hessian is factored once.

        If there are several sums, they are for equal parts of each weight's rows, in order.
        """
        wanted = [role for role in roles if self._is_open(role)]
        if not wanted:
            return
        name, damping = module_name(wanted[0]), self.settings.solver.damping
        try:
            factored = [(part.moments(), factor_inverse(part.moments().hessian_II, damping=damping)) for part in sums]
        except ValueError as error:
            raise QuantizationError(f"{name}: {error}") from error
        for role in wanted:
            self._solve_one(role, factored, tokens=sums[0].tokens)

    def report_normed_error(self, role: Role, error: float) -> None:
        """Add the error after the norm to the report of a weight."""
        name = module_name(role)
        if name in self.reports:
            self.reports[name] = replace(self.reports[name], normed_error=error)

    def _solve_one(self, role: Role, factored: Sequence[tuple[Moments, InverseFactor]], *, tokens: int) -> None:
        weight, number_format = self.graph[role], self.formats[module_name(role)]
        rows = weight.shape[0] // len(factored)
        # Parts of a weight's rows have Hessians of their own, so that their errors are not comparable.
        outputs = self.outputs.metric(role) if self.outputs is not None and len(factored) == 1 else None
        try:
            parts = [
                gptq(
                    read_tensor(weight, slice(i * rows, (i + 1) * rows)),
                    moments,
                    number_format,
                    settings=self.settings.solver,
                    threads=self.threads,
                    factor=factor,
                    outputs=outputs,
                )
                for i, (moments, factor) in enumerate(factored)
            ]
        except (QuantizationError, ValueError) as error:
            raise QuantizationError(f"{weight.name}: {error}") from error
        result = parts[0] if len(parts) == 1 else _stack_rows(parts)
        report = WeightReport(
            name=weight.name,
            format=number_format.name,
            method=result.method,
            error=result.error,
            rtn_error=result.rtn_error,
            damping=result.damping,
            tokens=tokens,
        )
        self.weights[weight.name] = self.folder.save(weight, number_format, result, report)
        self.reports[weight.name] = report

    def _is_open(self, role: Role) -> bool:
        name = module_name(role)
        if name in self.weights:
            return False
        found = self.folder.load(self.graph[role], self.formats[name])
        if found is not None:
            self.weights[name], self.reports[name] = found
        return found is None


def _stack_rows(parts: Sequence[GptqResult]) -> GptqResult:
    """Join the results for equal parts of a weight's rows."""
    return GptqResult(
        codes_OI=np.concatenate([part.codes_OI for part in parts]),
        params=join_rows([part.params for part in parts]),
        method="gptq" if any(part.method == "gptq" for part in parts) else "rtn",
        error=float(np.mean([part.error for part in parts])),
        rtn_error=float(np.mean([part.rtn_error for part in parts])),
        damping=max(part.damping for part in parts),
    )
