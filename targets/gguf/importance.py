"""Convert calibration statistics to llama.cpp's importance matrix.

The entries are what ``llama-imatrix`` would measure: for every matrix, the sum over tokens of the square of each input
column, and the number of tokens; for the experts of a layer, one row each. ``llama-imatrix`` leaves the head out. Here
it is included, under the name of the tensor that stores it: the embedding if the two are tied.
"""

from __future__ import annotations

from qwen3_export.calibration.statistics import Statistics
from qwen3_export.graph import Graph, Role
from qwen3_export.targets.gguf.imatrix import ImatrixEntry
from qwen3_export.targets.gguf.names import stack_weights

__all__ = ["importance_entries"]


def importance_entries(graph: Graph, statistics: Statistics) -> dict[str, ImatrixEntry]:
    """One entry for each matrix that the model multiplies with, by GGUF name, in file order."""
    multiplied = [
        weight
        for weight in graph
        if len(weight.shape) == 2 and (weight.role.layer is not None or weight.role == graph.head.role)
    ]
    entries = {}
    for tensor in stack_weights(multiplied):
        columns = statistics.of(Role(tensor.kind, tensor.layer))
        entries[tensor.name] = ImatrixEntry(columns.sum_of_squares_EI, columns.count_E)
    return entries
