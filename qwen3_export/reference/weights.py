"""Weights of the graph as fp32 tensors, read just before a layer uses them and dropped after.

A ``Linear`` is a matrix together with the rounding of its input: none in the exact reference, and int8 rounding to
model a runtime that does it.

Shapes: T tokens, D hidden, O out, I in, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from qwen3_export.graph import ALL_ROWS, Graph, Kind, Role, Weight

__all__ = [
    "AttentionWeights",
    "GatedWeights",
    "Linear",
    "RoundActivations",
    "embed",
    "read_attention",
    "read_gated",
    "read_linear",
    "read_tensor",
]

# Rounds the input [T, I] of a linear weight, row by row, as the runtime would.
RoundActivations = Callable[[Tensor, Weight], Tensor]

# Embedding rows this close together are read in one go.
MAX_GAP_ROWS = 64


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix in memory, and the function that rounds its input before the multiplication."""

    weight: Tensor  # [O, I]
    round_input: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x_TI: Tensor) -> Tensor:
        rounded_TI = x_TI if self.round_input is None else self.round_input(x_TI)
        return functional.linear(rounded_TI, self.weight)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWeights:
    """The weights of a layer's attention half, with the norm before it."""

    input_layernorm: Tensor
    q_proj: Linear
    k_proj: Linear
    v_proj: Linear
    q_norm: Tensor
    k_norm: Tensor
    o_proj: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class GatedWeights:
    """A gated MLP: that of a dense layer, or one expert."""

    gate_proj: Linear
    up_proj: Linear
    down_proj: Linear


def read_tensor(weight: Weight, rows: slice = ALL_ROWS) -> Tensor:
    """The values of a weight, or of a block of its rows, as an fp32 tensor."""
    return torch.from_numpy(np.require(weight.read(rows), np.float32, ["C", "W"]))


def read_linear(weight: Weight, *, round_activations: RoundActivations | None = None) -> Linear:
    """Read a whole matrix; ``round_activations`` will round its input."""
    values_OI = read_tensor(weight)
    if round_activations is None:
        return Linear(values_OI)
    return Linear(values_OI, lambda x_TI: round_activations(x_TI, weight))


def read_attention(graph: Graph, layer: int, *, round_activations: RoundActivations | None = None) -> AttentionWeights:
    """Read the attention weights of one layer."""

    def linear(kind: Kind) -> Linear:
        return read_linear(graph[Role(kind, layer)], round_activations=round_activations)

    return AttentionWeights(
        input_layernorm=read_tensor(graph[Role(Kind.INPUT_LAYERNORM, layer)]),
        q_proj=linear(Kind.Q_PROJ),
        k_proj=linear(Kind.K_PROJ),
        v_proj=linear(Kind.V_PROJ),
        q_norm=read_tensor(graph[Role(Kind.Q_NORM, layer)]),
        k_norm=read_tensor(graph[Role(Kind.K_NORM, layer)]),
        o_proj=linear(Kind.O_PROJ),
    )


def read_gated(
    graph: Graph, layer: int, *, expert: int | None = None, round_activations: RoundActivations | None = None
) -> GatedWeights:
    """Read the MLP of a dense layer (``expert`` None), or one expert of a sparse one."""

    def linear(kind: Kind) -> Linear:
        return read_linear(graph[Role(kind, layer, expert)], round_activations=round_activations)

    return GatedWeights(
        gate_proj=linear(Kind.GATE_PROJ), up_proj=linear(Kind.UP_PROJ), down_proj=linear(Kind.DOWN_PROJ)
    )


def embed(graph: Graph, tokens_T: Tensor) -> Tensor:
    """The embedding of each token, [T, D]. Only rows of tokens that occur are read.

    Raises ValueError if there are no tokens, or for an id outside the vocabulary.
    """
    if tokens_T.ndim != 1 or len(tokens_T) == 0:
        raise ValueError(f"tokens of shape {list(tokens_T.shape)}; one dimension, not empty, is needed")
    vocabulary = graph.config.vocab_size
    wanted, places = np.unique(tokens_T.numpy(), return_inverse=True)
    if wanted[0] < 0 or wanted[-1] >= vocabulary:
        raise ValueError(f"token ids {wanted[0]} to {wanted[-1]} leave a vocabulary of {vocabulary}")
    table = graph[Role(Kind.EMBED_TOKENS)]
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > MAX_GAP_ROWS) + 1)
    rows = [read_tensor(table, slice(int(run[0]), int(run[-1]) + 1))[run - run[0]] for run in runs]
    return torch.cat(rows)[places]
