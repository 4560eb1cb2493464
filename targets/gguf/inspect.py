"""What ``inspect`` shows of a GGUF file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from qwen3_export.targets.gguf.read import GgufFile, open_gguf, recorded_calibration
from qwen3_export.targets.inspection import counted
from qwen3_export.targets.target import Inspection
from qwen3_export.units import human_count, human_size

__all__ = ["inspect"]

TEMPLATE = "tokenizer.chat_template"


def inspect(path: Path) -> Inspection:
    """Sizes, types and metadata of a file (of a split one, any part)."""
    file = open_gguf(path)
    tensors = file.tensors.values()
    count = sum(math.prod(tensor.shape) for tensor in tensors)
    size = human_size(sum(tensor.num_bytes for tensor in tensors))
    facts: dict[str, object] = {
        "file": path,
        "parameters": f"{human_count(count)} ({count:,})",
        "tensor data": f"{size}, {file.bits_per_weight:.2f} bits a weight",
        "types": counted(tensor.format for tensor in tensors),
    }
    facts |= {key: value for key, value in file.metadata.items() if key != TEMPLATE}
    template = file.metadata.get(TEMPLATE)
    return Inspection(
        facts=facts, tensors=lambda: _lines(file), template=template if isinstance(template, str) else None
    )


def _lines(file: GgufFile) -> Iterator[str]:
    errors = (recorded_calibration(file) or {}).get("tensor_errors", {})
    for tensor in file.tensors.values():
        error = f"  output error {errors[tensor.name]:.2e}" if tensor.name in errors else ""
        yield f"{tensor.format:6} {list(tensor.shape)!s:22} {tensor.name}{error}"
