"""Callbacks for a run of the reference: observe its values, or change its arithmetic.

Hidden states are observed by ``Site``, to find where a runtime diverges from the reference. Inputs of linear weights
are observed by ``Role``, for calibration. Weights that share an input are reported once, under the first of them;
``SHARED_INPUT`` lists the others.

Shapes: T tokens, D hidden, N heads, K kv heads, H head_dim, I in, P tokens routed to one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from torch import Tensor

from qwen3_export.graph import Kind, Role
from qwen3_export.reference.weights import RoundActivations

__all__ = ["SHARED_INPUT", "Observe", "ObserveInputs", "Place", "Probe", "Site"]


class Place(str, Enum):
    """A point inside the model. Within a layer, in the order in which a token passes them."""

    INPUT = "input"  # the embedding, [T, D]; only layer 0 has it, other layers begin with the output before
    Q_ROPE = "q_rope"  # queries after norm and RoPE, [T, N, H]
    K_ROPE = "k_rope"  # keys after norm and RoPE, [T, K, H]
    ATTENTION = "attention"  # the output of o_proj, [T, D]
    AFTER_ATTENTION = "after_attention"  # the residual stream after attention, [T, D]
    MLP = "mlp"  # the output of the MLP, or of all experts together, [T, D]
    OUTPUT = "output"  # the residual stream after the layer, [T, D]
    FINAL = "final"  # after the final norm, [T, D]; outside the layers


@dataclass(frozen=True, slots=True)
class Site:
    """One point inside the model: a place and its layer (None for ``FINAL``)."""

    place: Place
    layer: int | None = None

    def __str__(self) -> str:
        return self.place.value if self.layer is None else f"layer {self.layer} {self.place.value}"


# Called with a site, the index of the sequence, and the hidden state.
Observe = Callable[[Site, int, Tensor], None]

# Called with the role of a linear weight, the index of the sequence, the weight's input [T, I] and, for an expert, the
# share [T] of its result in each token, else None. Inputs are observed before rounding.
ObserveInputs = Callable[[Role, int, Tensor, Tensor | None], None]

# Weights whose input is reported under another weight: q_proj's is also that of k_proj and v_proj. (In a dense layer
# the router would read gate_proj's input; each expert sees only some of those tokens.)
SHARED_INPUT: Mapping[Kind, Kind] = MappingProxyType(
    {Kind.K_PROJ: Kind.Q_PROJ, Kind.V_PROJ: Kind.Q_PROJ, Kind.UP_PROJ: Kind.GATE_PROJ}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The callbacks of one run; any of them may be None."""

    observe: Observe | None = None
    observe_inputs: ObserveInputs | None = None
    round_activations: RoundActivations | None = None

    def see(self, site: Site, sequence: int, state: Tensor) -> None:
        if self.observe is not None:
            self.observe(site, sequence, state)

    def see_input(self, role: Role, sequence: int, x_TI: Tensor, shares_T: Tensor | None = None) -> None:
        if self.observe_inputs is not None:
            self.observe_inputs(role, sequence, x_TI, shares_T)
