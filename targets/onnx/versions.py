"""The oldest onnxruntime that runs a graph, found by trying every minor release from 1.20 to 1.32.

| graph | onnxruntime |
|---|---|
| dense, any recipe; mixtures of experts as fp32 | 1.23 |
| mixtures with quantized experts (QMoE with accuracy_level) | 1.31 |
| the same for transformers.js, experts of 4 bits (QMoE without it) | 1.23 |

onnxruntime-genai runs them from 0.8.3 on.
"""

from __future__ import annotations

from qwen3_export.targets.onnx.read import OnnxFile

__all__ = ["OLDEST", "oldest_runtime"]

OLDEST, WITH_EXPERT_ACCURACY = "1.23", "1.31"


def oldest_runtime(file: OnnxFile) -> str:
    """The first minor release of onnxruntime that loads the graph and computes it right."""
    is_newer = any(
        attribute.name == "accuracy_level"
        for node in file.proto.graph.node
        if node.op_type == "QMoE"
        for attribute in node.attribute
    )
    return WITH_EXPERT_ACCURACY if is_newer else OLDEST
