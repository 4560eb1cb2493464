"""Collect the statistics of one layer through the reference's probe, while windows of tokens pass through it.

Weights with the same inputs (q, k and v; gate and up) have one entry, and so have the experts of a layer together.
States (the residual stream, what attention and MLP add to it, queries and keys after norm and RoPE) are kept by their
place.

Shapes: T tokens, D hidden, N heads, H head_dim, I in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from qwen3_export.calibration.columns import ColumnAccumulator, ColumnStatistics
from qwen3_export.config import Qwen3Config
from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Role
from qwen3_export.reference.probe import Place, Probe, Site

__all__ = ["LayerCollector", "LayerStatistics"]

BY_HEAD = frozenset({Place.Q_ROPE, Place.K_ROPE})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LayerStatistics:
    """The statistics of one layer. Roles have no expert: each expert has a row in the statistics of its kind."""

    inputs: Mapping[Role, ColumnStatistics]
    states: Mapping[Site, ColumnStatistics]


@dataclass(slots=True)
class LayerCollector:
    """Collects statistics; its ``probe`` is passed to the reference."""

    config: Qwen3Config
    _inputs: dict[Role, ColumnAccumulator] = field(default_factory=dict)
    _states: dict[Site, ColumnAccumulator] = field(default_factory=dict)

    @property
    def probe(self) -> Probe:
        return Probe(observe=self.see_state, observe_inputs=self.see_input)

    def see_input(self, role: Role, _sequence: int, x_TI: Tensor, shares_T: Tensor | None = None) -> None:
        experts = 1 if role.expert is None else self.config.num_experts
        key = replace(role, expert=None)
        if key not in self._inputs:
            self._inputs[key] = ColumnAccumulator(experts, x_TI.shape[-1])
        self._inputs[key].add(x_TI, expert=role.expert or 0, shares_T=shares_T)

    def see_state(self, site: Site, _sequence: int, state: Tensor) -> None:
        heads_TNH = state if site.place in BY_HEAD else state[:, None]
        if site not in self._states:
            self._states[site] = ColumnAccumulator(*heads_TNH.shape[1:])
        self._states[site].add_heads(heads_TNH)

    def result(self) -> LayerStatistics:
        """The statistics so far. Raises CheckpointError if something overflowed even fp32."""
        states = {site: accumulator.result() for site, accumulator in self._states.items()}
        for site, found in states.items():
            if not np.isfinite(found.sum_of_squares_EI).all():
                raise CheckpointError(
                    f"{site}: activations are not finite; the checkpoint is damaged, or its training diverged"
                )
        return LayerStatistics(
            inputs={role: accumulator.result() for role, accumulator in self._inputs.items()}, states=states
        )
