"""A skip that nobody expects fails the session that asks for it, wherever the skip happens; others do not."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import is_expected

FILES = {
    "test_skipped.py": """
import pytest

@pytest.fixture
def broken():
    pytest.skip("the fixture lacks a runtime")

def test_that_runs(): pass
def test_with_chromium(): pytest.skip("chromium is not installed")
def test_inside(): pytest.skip("no such runtime")
def test_by_fixture(broken): pass
@pytest.mark.skip(reason="later")
def test_by_marker(): pass
@pytest.mark.parametrize("nothing", [])
def test_of_nothing(nothing): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
""",
    "test_module.py": "import pytest\npytest.importorskip('a_runtime')\ndef test_it(): pass\n",
    "below/conftest.py": "import pytest\npytest.importorskip('another_runtime')\n",
    "below/test_below.py": "def test_it(): pass\n",
}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
UNEXPECTED = [
    "test_skipped.py::test_inside: no such runtime",
    "test_skipped.py::test_by_fixture: the fixture lacks a runtime",
    "test_skipped.py::test_by_marker: later",
    "test_skipped.py::test_of_nothing[NOTSET]: got empty parameter set for (nothing)",
    "test_module.py: could not import 'a_runtime': No module named 'a_runtime'",
    "below: could not import 'another_runtime': No module named 'another_runtime'",
]


@pytest.fixture
def session(tmp_path: Path):
    """Run pytest on some of FILES, with our option or without; its exit code and its lines."""

    def run(names: list[str], *options: str) -> tuple[int, list[str]]:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(FILES[name], encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-p", "skips", "-p", "no:cacheprovider", "--rootdir", ".", *options]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.splitlines()

    return run


def test_each_is_named_and_fails_the_session(session) -> None:
    code, lines = session(list(FILES), "--no-unexpected-skips")
    assert code == 1, lines
    found = [line.removeprefix("SKIPPED ") for line in lines if line.startswith("SKIPPED ")]
    assert sorted(found) == sorted(UNEXPECTED)


def test_nothing_fails_unasked(session) -> None:
    assert session(list(FILES))[0] == 0


def test_expected_skips_fail_nothing(session) -> None:
    code, lines = session(["test_skipped.py"], "--no-unexpected-skips", "-k", "runs or chromium or known")
    assert code == 0, lines
    assert not any("unexpected" in line for line in lines)


def test_a_missing_runtime_is_never_expected() -> None:
    for name in ("llama_cpp", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai", "executorch", "coremltools",
                 "torchao.quantization", "coremltools.optimize._utils", "transformers", "gguf", "tomli"):  # fmt: skip
        package = name.partition(".")[0]
        assert not is_expected(f"could not import '{name}': No module named '{package}'")
    assert is_expected("could not import 'mlx.core': No module named 'mlx'")
    assert not is_expected("could not import 'mlx.core': No module named 'mlx.core'"), "mlx is there, and broken"


def test_no_conftest_skips_while_it_is_imported() -> None:
    """Where its folder is named on the command line, pytest would end with a traceback."""
    for path in Path(__file__).parent.rglob("conftest.py"):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        outside = [node for statement in body if not isinstance(statement, DEFINITIONS) for node in ast.walk(statement)]
        called = [ast.unparse(node.func) for node in outside if isinstance(node, ast.Call)]
        assert not [name for name in called if "skip" in name], path
