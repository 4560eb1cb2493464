"""A marker for each target: ``pytest -m onnx`` runs what concerns ONNX, whatever folder it lies in.

Tests below ``tests/targets/NAME`` are marked NAME, and so is a whole file where ``FILES`` says so. In other files, each
test that concerns a target carries the marker itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import pytest

__all__ = ["FILES", "TARGETS", "targets_of"]

TESTS = Path(__file__).parent
TARGETS = ("gguf", "onnx", "executorch", "coreml")
# Files below tests/, as patterns -> the target that all of their tests concern
FILES: Mapping[str, str] = {
    "cli/test_gguf.py": "gguf",
    "cli/test_gptq.py": "gguf",
    "cli/test_awq.py": "gguf",
    "cli/test_calibrate.py": "gguf",
    "cli/test_others.py": "gguf",
    "cli/test_onnx.py": "onnx",
    "cli/test_executorch.py": "executorch",
    "cli/test_coreml.py": "coreml",
    "quantizers/test_ggml_*.py": "gguf",
    "quantizers/test_packing_torchao.py": "executorch",
    "qwen3_export/test_api.py": "gguf",
    "qwen3_export/test_llama_names.py": "gguf",
    "test_examples.py": "gguf",
}


def targets_of(path: Path) -> Iterator[str]:
    """The targets that every test of a file concerns, by where it lies."""
    if not path.is_relative_to(TESTS):
        return
    below = path.relative_to(TESTS)
    if below.parts[0] == "targets" and below.parts[1] in TARGETS:
        yield below.parts[1]
    yield from (target for pattern, target in FILES.items() if fnmatch(below.as_posix(), pattern))


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for target in targets_of(item.path):
            item.add_marker(target)
