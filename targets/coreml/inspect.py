"""What ``inspect`` shows of a Core ML folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.calibration.provenance import PREFIX
from qwen3_export.targets.coreml.mil import open_package
from qwen3_export.targets.coreml.read import CoremlFile, open_coreml
from qwen3_export.targets.inspection import output_errors, template_beside
from qwen3_export.targets.target import Inspection
from qwen3_export.units import human_size

__all__ = ["inspect"]

MOST_OPS = 8


def inspect(path: Path) -> Inspection:
    """Inputs, states, operations and origin of a folder (or the package in it)."""
    file = open_coreml(path)
    package = open_package(file.package)
    features = {"inputs": package.inputs, "states": package.states, "outputs": package.outputs}
    facts: dict[str, object] = {
        "package": f"{file.package}, {human_size(file.size_bytes)}",
        "specification": package.spec_version,
        "operations": ", ".join(f"{count} {kind}" for kind, count in package.ops.most_common(MOST_OPS)),
    }
    facts |= {part: ", ".join(map(str, found.values())) for part, found in features.items()}
    facts |= {key.removeprefix(PREFIX): value for key, value in file.metadata.items()}
    return Inspection(facts=facts, tensors=lambda: _lines(file), template=template_beside(file.folder))


def _lines(file: CoremlFile) -> Iterator[str]:
    for name, parts in file.constants.items():
        for part, blob in parts.items():
            yield f"{blob.element:6} {list(blob.shape)!s:22} {name} {part}"
    yield from output_errors(file.metadata)
