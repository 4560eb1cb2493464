"""What ``inspect`` shows of an ONNX folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX
from qwen3_export.targets.inspection import counted, output_errors, template_beside
from qwen3_export.targets.onnx.read import OnnxFile, open_onnx
from qwen3_export.targets.target import Inspection
from qwen3_export.units import human_size

__all__ = ["inspect"]


def inspect(path: Path) -> Inspection:
    """Operators, inputs and origin of a folder (or the graph in it)."""
    file = open_onnx(path)
    graph = file.proto.graph
    facts: dict[str, object] = {
        "graph": file.graph_path,
        "weights": ", ".join(_sizes(file)) or "in the graph",
        "operators": counted(node.op_type for node in graph.node),
        "inputs": ", ".join(value.name for value in graph.input if "past" not in value.name),
    }
    facts |= {key.removeprefix(PREFIX): value for key, value in file.metadata.items()}
    return Inspection(facts=facts, tensors=lambda: _lines(file), template=template_beside(file.folder))


def _sizes(file: OnnxFile) -> Iterator[str]:
    for path in file.data_paths:
        yield f"{path.name}, {human_size(path.stat().st_size)}"


def _lines(file: OnnxFile) -> Iterator[str]:
    for place in file.initializers.values():
        yield f"{place.dtype.strip('<|'):3} {list(place.shape)!s:22} {place.name}"
    yield from output_errors(file.metadata)
