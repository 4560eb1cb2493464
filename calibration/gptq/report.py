"""What a GPTQ run says of itself: each weight's error, which experts were calibrated, how far routing moved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["CalibrationReport", "RoutingReport", "WeightReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReport:
    """One weight; errors are tr(ΔW H ΔWᵀ) / tr(W H Wᵀ) against the weights aimed at.

    ``method`` says whose codes were the better ones: GPTQ's, or plain rounding's ("rtn"); ``damping`` is what the
    Hessian's inverse took; ``tokens`` how many met the weight.  ``normed_error``, for q_proj and k_proj, is the
    squared error of their heads after the norm, of all that was quantized so far, relative to the fp32 model's squares.
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
    """One layer of a mixture: the tokens of each expert, and the share of tokens whose set of experts changed."""

    layer: int
    tokens: tuple[int, ...]
    changed: float

    @property
    def unseen(self) -> list[int]:
        """Experts that no token was sent to: they are quantized for the layer's average token."""
        return [expert for expert, count in enumerate(self.tokens) if count == 0]


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationReport:
    """The whole run; ``tokens_digest`` names the tokens, ``settings`` what was asked for."""

    settings: Mapping[str, Any]
    tokens_digest: str
    num_tokens: int
    weights: tuple[WeightReport, ...]
    routing: tuple[RoutingReport, ...]
    seconds: float

    @property
    def notes(self) -> list[str]:
        """What a user should hear of, a sentence each."""
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
        return {**asdict(self), "notes": self.notes}
