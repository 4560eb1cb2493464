"""Every test that concerns a target has its marker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from marks import FILES, TARGETS, TESTS, targets_of

# Packages without which a test skips -> the target that it concerns
RUNTIMES = {
    "llama_cpp": "gguf",
    "onnx": "onnx",
    "onnx_ir": "onnx",
    "onnxruntime": "onnx",
    "onnxruntime_genai": "onnx",
    "executorch": "executorch",
    "torchao": "executorch",
    "coremltools": "coreml",
}


def needed(node: ast.AST) -> set[str]:
    """The targets whose packages some code asks for by ``importorskip``."""
    calls = [call for call in ast.walk(node) if isinstance(call, ast.Call)]
    calls = [call for call in calls if ast.unparse(call.func) == "pytest.importorskip"]
    named = [call.args[0] for call in calls]
    packages = {str(name.value).partition(".")[0] for name in named if isinstance(name, ast.Constant)}
    return {RUNTIMES[package] for package in packages & RUNTIMES.keys()}


def unmarked(path: Path) -> Iterator[str]:
    by_place = set(targets_of(path))
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marked = {target for target in TARGETS if f"pytest.mark.{target}" in map(ast.unparse, node.decorator_list)}
            missing = needed(node) - by_place - marked
        else:
            missing = set() if isinstance(node, ast.FunctionDef) else needed(node) - by_place
        if missing:
            yield f"{path.relative_to(TESTS)}:{node.lineno} lacks {', '.join(missing)}"


def test_what_needs_a_runtime_is_marked() -> None:
    found = [sentence for path in sorted(TESTS.rglob("*.py")) for sentence in unmarked(path)]
    assert not found, "\n".join(found)


def test_every_target_is_known_by_its_folder() -> None:
    targets = {path.parent.name for path in (TESTS.parent / "targets").glob("*/check.py")}
    assert targets == set(TARGETS) == {path.name for path in (TESTS / "targets").iterdir() if path.is_dir()} & targets
    assert list(targets_of(TESTS / "targets" / "coreml" / "mil" / "test_blobs.py")) == ["coreml"]


def test_every_file_that_is_named_is_there() -> None:
    assert [pattern for pattern in FILES if not list(TESTS.glob(pattern))] == []


def test_a_marker_was_given(request) -> None:
    """On this very session: where files were collected, their markers are on them."""
    for item in request.session.items:
        assert {mark.name for mark in item.iter_markers()} >= set(targets_of(item.path))
