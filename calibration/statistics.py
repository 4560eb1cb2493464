"""Calibration statistics of a model: the same for every recipe, target and solver.

Everything is measured in the fp32 model. Hessians are not included: a sequential solver needs Hessians of inputs that
its own earlier choices have changed, one layer at a time.

Shapes: E experts (1 for an ordinary matrix), K kv heads, H head_dim, I input columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen3_export.calibration.columns import ColumnStatistics
from qwen3_export.graph import Kind, Role
from qwen3_export.reference.probe import SHARED_INPUT, Place, Site

__all__ = ["ExpertCoverage", "Origin", "Statistics"]

# An expert is rare if it got less than this part of an equal share of the tokens.
RARE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """The model and the tokens of statistics: enough to recognize them, and to refuse those of another model."""

    model: str
    checkpoint: str  # digest of the weights
    dataset: str  # the user's name for the text
    tokens: str  # digest of the tokens
    windows: int
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExpertCoverage:
    """How many tokens each expert of one layer saw, from the statistics of its gate_proj."""

    layer: int
    seen: ColumnStatistics

    @property
    def unseen(self) -> list[int]:
        """Experts that no token was sent to; nothing is known about their columns."""
        return [expert for expert, count in enumerate(self.seen.count_E.tolist()) if count == 0]

    @property
    def rare(self) -> list[int]:
        """Experts that saw some tokens, but few."""
        counts = self.seen.count_E
        limit = RARE * counts.sum() / len(counts)
        return [expert for expert, count in enumerate(counts.tolist()) if 0 < count < limit]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Statistics:
    """``inputs`` by the role under which the reference reports them, ``states`` by place."""

    origin: Origin
    inputs: Mapping[Role, ColumnStatistics]
    states: Mapping[Site, ColumnStatistics]

    def of(self, role: Role) -> ColumnStatistics:
        """The statistics of one weight's columns, [1, I]; [E, I] for a role without expert in a layer of experts.

        In a tied model the embedding is the head. Raises KeyError for weights that multiply nothing.
        """
        found = self.inputs[Role(SHARED_INPUT.get(role.kind, role.kind), role.layer)]
        return found if role.expert is None else found.expert(role.expert)

    @property
    def key_ranges(self) -> dict[int, ColumnStatistics]:
        """Statistics of keys after norm and RoPE, [K, H], by layer: these are the keys that a KV cache stores."""
        return {site.layer: found for site, found in self.states.items()
                if site.place is Place.K_ROPE and site.layer is not None}  # fmt: skip

    def expert_coverage(self) -> list[ExpertCoverage]:
        """One for each layer with experts, in order."""
        return [
            ExpertCoverage(layer=role.layer, seen=found)
            for role, found in self.inputs.items()
            if role.kind is Kind.GATE_PROJ and role.layer is not None and len(found.count_E) > 1
        ]
