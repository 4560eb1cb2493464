"""Check what swift-transformers needs of a Core ML package, and its size for phones."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.targets.coreml.metadata_check import interface_differences, metadata_differences
from qwen3_export.targets.coreml.mil import Package, open_package
from qwen3_export.targets.coreml.names import ATTENTION_MASK, FULL_MASK
from qwen3_export.targets.coreml.read import open_coreml, tensor_differences
from qwen3_export.targets.coreml.target import COREML
from qwen3_export.targets.lint import Finding

__all__ = ["lint_coreml"]

SWIFT = COREML.consumers
# Filled with zeros, [1, 1, 1, positions + 1].
ZEROS = (ATTENTION_MASK, "causalMask")
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
    yield from _masks(package, is_own=is_own)
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


def _masks(package: Package, *, is_own: bool) -> Iterator[Finding]:
    """Whether the library fills the masks that a package takes, and with what."""
    if FULL_MASK in package.inputs:
        yield Finding(
            text=f"the package takes {FULL_MASK}, which no release of the library fills (1.3.3 and older), and the app "
            f"crashes; export with `mask={ATTENTION_MASK!r}`, or call Core ML from code of your own",
            consumers=SWIFT,
        )
    for name in () if is_own else ZEROS:
        if name not in package.inputs:
            continue
        feature = package.inputs[name]
        told = f"the package takes {name}, which the library fills with zeros, in one row and one column too many"
        if len(feature.ranges) == 4 and feature.ranges[2][1] != 1:
            text = f"{told}: this package leaves the causal mask to the app, so tokens of a prompt see later ones"
            yield Finding(text=text, consumers=SWIFT)
        else:
            text = f"{told}: whether the program builds the causal mask itself is not known from its inputs"
            yield Finding(text=text, consumers=SWIFT, is_error=False)
