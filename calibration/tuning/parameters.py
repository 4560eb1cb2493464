"""What is tuned, and how far: a relative change for each number of a norm, and for each scale of a solved weight.

Changes are moved by Adam (arXiv 1412.6980). They are kept beside the quantized graph, which is not changed; the tuned
graph applies them when a weight is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import cast

import numpy as np
from numpy.typing import NDArray

from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.weights.protocols import QuantizedWeight, code_format
from qwen3_export.quantizers.weights.rounded import RoundedWeight
from qwen3_export.quantizers.weights.tuned import MOST_OF_A_NORM, TunedNorm, TunedWeight

__all__ = ["Parameters"]

Values = NDArray[np.float32]

DECAYS, EPSILON = (0.9, 0.95), 1e-12


@dataclass(slots=True, kw_only=True)
class Parameters:
    """The changes so far by weight name, and Adam's means of gradients and of their squares; they change in place."""

    graph: Graph
    changes: dict[str, Values]
    means: dict[str, Values] = field(default_factory=dict)
    squares: dict[str, Values] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, solved: Mapping[str, object]) -> Parameters:
        """No changes yet: of all norms, and of the weights of ``solved``, which have codes."""
        shapes = {weight.name: _shape(weight) for weight in graph if weight.role.is_norm or weight.name in solved}
        return cls(graph=graph, changes={name: np.zeros(shape, np.float32) for name, shape in shapes.items()})

    def tuned(self, fraction: float = 1.0) -> Graph:
        """The graph with this part of the changes; of all of them (1), those that are made later show in it."""
        parts = {
            name: changes if fraction == 1 else changes * np.float32(fraction) for name, changes in self.changes.items()
        }
        changed = {name: _tuned(self.graph.weights[name], changes) for name, changes in parts.items()}
        return self.graph.with_weights(MappingProxyType({**self.graph.weights, **changed}))

    def zeros(self) -> dict[str, Values]:
        """Room for a gradient."""
        return {name: np.zeros_like(changes) for name, changes in self.changes.items()}

    def move(self, gradients: Mapping[str, Values], *, rate: float, step: int) -> None:
        """One step of Adam; ``step`` counts from 1."""
        first, second = DECAYS
        for name, gradient in gradients.items():
            mean = self.means.setdefault(name, np.zeros_like(gradient))
            square = self.squares.setdefault(name, np.zeros_like(gradient))
            mean += (1 - first) * (gradient - mean)
            square += (1 - second) * (np.square(gradient) - square)
            size = np.sqrt(square / (1 - second**step)) + np.float32(EPSILON)
            self.changes[name] -= np.float32(rate / (1 - first**step)) * mean / size
            if self.graph.weights[name].role.is_norm:
                np.clip(self.changes[name], -MOST_OF_A_NORM, MOST_OF_A_NORM, out=self.changes[name])

    def arrays(self) -> dict[str, Values]:
        """Everything that a later run goes on from."""
        parts = {"change": self.changes, "mean": self.means, "square": self.squares}
        return {f"{part} {name}": array for part, arrays in parts.items() for name, array in arrays.items()}

    def take(self, arrays: Mapping[str, Values]) -> None:
        """The inverse of ``arrays``."""
        parts = {"change": self.changes, "mean": self.means, "square": self.squares}
        for key, array in arrays.items():
            part, _, name = key.partition(" ")
            parts[part][name] = array


def _shape(weight: Weight) -> tuple[int, ...]:
    number_format = code_format(weight)
    shape = weight.shape if number_format is None else number_format.changes_shape(weight.shape)
    assert shape is not None
    return shape


def _tuned(weight: Weight, changes: Values) -> Weight:
    if not weight.role.is_norm:
        return TunedWeight(source=cast("QuantizedWeight", weight), changes=changes)
    if isinstance(weight, RoundedWeight):
        return replace(weight, source=TunedNorm(source=weight.source, changes=changes))
    return TunedNorm(source=weight, changes=changes)
