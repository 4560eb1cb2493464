"""Check what swift-transformers needs of a Core ML package, and its size for phones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.targets.coreml.metadata_check import interface_differences, metadata_differences
from qwen3_export.targets.coreml.mil import open_package
from qwen3_export.targets.coreml.read import open_coreml, tensor_differences
from qwen3_export.targets.coreml.target import COREML
from qwen3_export.targets.lint import Finding

__all__ = ["lint_coreml"]

SWIFT = COREML.consumers
NAME = "co.huggingface.exporters.name"
# Files above this have failed to load on phones for want of memory.
LARGE_BYTES = 1 << 30


def lint_coreml(path: Path, graph: Graph, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Inputs, states, numbers, tables and documents against the checkpoint; then names and sizes."""
    file = open_coreml(path)
    is_own = PREFIX + "version" in file.metadata
    texts = metadata_differences(file, graph, tokenizer) if is_own else interface_differences(file, graph)
    for text in [*texts, *(tensor_differences(file, graph) if is_own else ())]:
        yield Finding(text=text, consumers=SWIFT)
    package = open_package(file.package)
    for name in ("causalMask", "attentionMask"):
        if name in package.inputs:
            yield Finding(text=f"the package takes {name}, which the library fills with zeros", consumers=SWIFT)
    if package.unknown_ops:
        told = ", ".join(package.unknown_ops)
        yield Finding(text=f"operations that cannot be checked off a Mac: {told}", consumers=SWIFT, is_error=False)
    if NAME not in file.metadata:
        yield Finding(text=f"{NAME} is missing: the library finds no tokenizer by it", consumers=SWIFT, is_error=False)
    if file.size_bytes > LARGE_BYTES:
        size = file.size_bytes / 1e9
        yield Finding(
            text=f"the package has {size:.1f} GB, more than phones of 6 GB load; use fewer bits",
            consumers=SWIFT,
            is_error=False,
        )
