"""Run a checkpoint in the fp32 reference with a KV cache; weights stay in memory if they fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qwen3_export.checkpoint.model import Model
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.speech import folder_speech
from qwen3_export.generation.stepper import ChunkedStepper, Runtime, Stepper
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph
from qwen3_export.reference.model import KVCache, forward, head_logits

__all__ = ["held", "open_checkpoint", "reference_runtime"]

CHUNK = 512
# In fp32. Weights of a larger model are read from its files again for every token.
HELD_BYTES = 6 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldWeight(DerivedWeight):
    """A weight whose values have been read."""

    values: NDArray[np.float32]

    def read(self, rows: slice = ALL_ROWS) -> NDArray[np.float32]:
        return self.values[rows]


@contextmanager
def open_checkpoint(model: Model) -> Iterator[Opened]:
    """Open a checkpoint for generation in the fp32 reference."""
    checkpoint_speech = folder_speech(model.folder, end_ids=model.tokenizer.generation.eos_token_ids)
    yield Opened(runtime=reference_runtime(model.graph), speech=checkpoint_speech)


def reference_runtime(graph: Graph) -> Runtime:
    """The reference as a runtime. If values are kept in memory, they are read now."""
    ready = held(graph)

    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        cache = KVCache()

        def append(tokens: Sequence[int], _past: int) -> NDArray[np.float32]:
            (hidden_TD,) = forward(ready, [torch.tensor(tokens)], caches=[cache])
            logits: NDArray[np.float32] = head_logits(ready, hidden_TD[-1:])[0].numpy()
            return logits

        yield ChunkedStepper(append, positions=positions, chunk=CHUNK)

    return Runtime(name="the fp32 reference", context_length=graph.config.context_length, start=start)


def held(graph: Graph) -> Graph:
    """The graph with its values in memory, if they take at most HELD_BYTES."""
    if 4 * graph.num_parameters > HELD_BYTES:
        return graph
    return graph.with_weights(
        {
            weight.name: HeldWeight(source=weight, values=np.require(weight.read(), np.float32, ["C", "W"]))
            for weight in graph
        }
    )
