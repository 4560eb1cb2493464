"""The report of a GPTQ run: the error of each weight, the tokens of each expert, and how routing changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["CalibrationReport", "RoutingReport", "WeightReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReport:
    """The errors of one weight: tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) against the weights aimed at.

    ``method`` says whose codes were better: GPTQ's, or those of plain rounding ("rtn"). ``damping`` is what the inverse
    of the Hessian needed, ``tokens`` the number of tokens that reached the weight. ``normed_error``, for q_proj and
    k_proj, is the squared error of their heads after the norm, relative to the fp32 model's squares; it includes the
    errors of all weights before.
    """

    name: str
    format: str
    method: Literal["gptq", "rtn"]
    error: float
    rtn_error: float
    damping: float
    tokens: int
    normed_error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingReport:
    """The routing of one layer: tokens of each expert, and the share of tokens whose set of experts changed."""

    layer: int
    tokens: tuple[int, ...]
    changed: float

    @property
    def unseen(self) -> list[int]:
        """Experts that no token was sent to; they are solved for the layer's average token."""
        return [expert for expert, count in enumerate(self.tokens) if count == 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """The report of a whole run; ``tokens_digest`` identifies the tokens, ``settings`` are those of the run."""

    settings: Mapping[str, Any]
    tokens_digest: str
    num_tokens: int
    weights: tuple[WeightReport, ...]
    routing: tuple[RoutingReport, ...]
    seconds: float

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""
        found = [
            f"layer {layer.layer}: no calibration token was sent to experts {', '.join(map(str, layer.unseen))}; "
            "they are quantized for the layer's average token"
            for layer in self.routing
            if layer.unseen
        ]
        asked = self.settings["damping"]
        found += [
            f"{weight.name}: its Hessian took a damping of {weight.damping:g}; calibrate on more, or more varied, text"
            for weight in self.weights
            if weight.damping > asked
        ]
        return found

    def as_dict(self) -> dict[str, Any]:
        """The report as plain values, with its notes."""
        return {**asdict(self), "notes": self.notes}
