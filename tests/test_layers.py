"""Every import points downwards, and the checker that says so sees imports wherever they hide."""

from __future__ import annotations

from pathlib import Path

import pytest
from layers import FOLDERS, LAYERS, find_imports, layer_of, module_names, offences

ROOT = Path(__file__).parents[1]

SOUND = {
    "qwen3_export/__init__.py": 'import importlib\n\n__version__ = "1"\napi = "qwen3_export.api"\n',
    "qwen3_export/api.py": "from qwen3_export.targets.registry import find\n",
    "qwen3_export/errors.py": "",
    "qwen3_export/graph.py": "from qwen3_export.errors import ExportError\n",
    "qwen3_export/files/__init__.py": "",
    "qwen3_export/parity/__init__.py": "",
    "qwen3_export/parity/report.py": "from qwen3_export import __version__\nfrom qwen3_export.graph import Graph\n",
    "qwen3_export/generation/__init__.py": "from qwen3_export.graph import Graph\n",
    "qwen3_export/cli/__init__.py": "import qwen3_export.api\nfrom qwen3_export.targets.gguf import check\n",
    "quantizers/__init__.py": "from ..graph import Graph\n",
    "quantizers/ggml.py": "from . import packing\n",
    "calibration/__init__.py": "import qwen3_export.quantizers.ggml\n",
    "targets/__init__.py": "",
    "targets/registry.py": 'MODULES = ["qwen3_export.targets.gguf.check", "qwen3_export.targets.onnx"]\n',
    "targets/shared.py": "from qwen3_export.parity.report import Report\n",
    "targets/more.py": "",
    "targets/gguf/__init__.py": "",
    "targets/gguf/check.py": "from qwen3_export.targets import shared\nfrom qwen3_export.targets.gguf import names\n",
    "targets/gguf/names.py": "from qwen3_export.calibration import columns\n",
    "targets/onnx/__init__.py": "from ...parity import report\n",
    "targets/onnx/check.py": "from qwen3_export.targets.shared import Report\n",
}

# What is added to which file, and the only complaint that it gives
OFFENCES = {
    "at the top": (
        "qwen3_export/graph.py", "import qwen3_export.quantizers",
        "graph.py:2 imports qwen3_export.quantizers, which is of a higher layer",
    ),
    "of a name": (
        "quantizers/ggml.py", "from qwen3_export.calibration import collect",
        "ggml.py:2 imports qwen3_export.calibration, which is of a higher layer",
    ),
    "of a module by from": (
        "calibration/__init__.py", "from qwen3_export.parity import report as r",
        "calibration/__init__.py:2 imports qwen3_export.parity.report, which is of a higher layer",
    ),
    "inside a function": (
        "qwen3_export/parity/report.py", "def f():\n    from qwen3_export.targets.gguf.names import g",
        "report.py:4 imports qwen3_export.targets.gguf.names, which is of a higher layer",
    ),
    "for type checkers alone": (
        "targets/shared.py", "if TYPE_CHECKING:\n    from qwen3_export.api import find",
        "shared.py:3 imports qwen3_export.api, which is of a higher layer",
    ),
    "by a string": (
        "qwen3_export/generation/__init__.py", 'import_module("qwen3_export.targets.gguf.check")',
        "generation/__init__.py:2 imports qwen3_export.targets.gguf.check, which is of a higher layer",
    ),
    "by a string with a hole": (
        "qwen3_export/generation/__init__.py", 'import_module(f"qwen3_export.targets.{name}.check")',
        "generation/__init__.py:2 imports qwen3_export.targets, which is of a higher layer",
    ),
    "by dots": (
        "quantizers/ggml.py", "from ..targets.gguf import names",
        "ggml.py:2 imports qwen3_export.targets.gguf.names, which is of a higher layer",
    ),
    "of the facade": (
        "targets/shared.py", "import qwen3_export as qx",
        "shared.py:2 imports qwen3_export, which is of a higher layer",
    ),
    "of more than the version": (
        "targets/shared.py", "from qwen3_export import check",
        "shared.py:2 imports qwen3_export, which is of a higher layer",
    ),
    "of the command line": (
        "qwen3_export/api.py", "from qwen3_export import cli",
        "api.py:2 imports qwen3_export.cli, which is of a higher layer",
    ),
    "within the core": (
        "qwen3_export/files/__init__.py", "from qwen3_export.graph import Graph",
        "files/__init__.py:1 imports qwen3_export.graph, which is of a higher layer",
    ),
    "of a neighbour": (
        "qwen3_export/parity/report.py", "import qwen3_export.generation",
        "report.py:3 imports qwen3_export.generation: parity and generation know nothing of each other",
    ),
    "of another target": (
        "targets/gguf/names.py", "from qwen3_export.targets.onnx.check import f",
        "names.py:2 imports qwen3_export.targets.onnx.check: a target knows nothing of another",
    ),
    "of what imports another target": (
        "targets/gguf/names.py", "from qwen3_export.targets.registry import find",
        "names.py:2 imports qwen3_export.targets.registry, which leads to other targets: onnx",
    ),
    "of what leads to another target": (
        "targets/shared.py", "import qwen3_export.targets.registry",
        "onnx/check.py:1 imports qwen3_export.targets.shared, which leads to other targets: gguf",
    ),
}  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small repository whose layers are in order."""
    for name, text in SOUND.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def test_every_import_points_downwards() -> None:
    found = offences(ROOT)
    assert not found, "\n".join(found)


def test_nothing_is_overlooked() -> None:
    """Every file is read and has a layer, and there is something in each layer."""
    names = module_names(ROOT)
    assert set(names.values()) == {path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert {layer_of(name) for name in names} == set(range(len(LAYERS)))
    imports = find_imports(ROOT)
    assert len({found.importer for found in imports}) > 0.7 * len(names)


def test_a_sound_tree_is_sound(tree: Path) -> None:
    assert offences(tree) == []
    assert len(find_imports(tree)) >= 15


@pytest.mark.parametrize("how", OFFENCES)
def test_what_is_planted_is_found(tree: Path, how: str) -> None:
    file, line, complaint = OFFENCES[how]
    with (tree / file).open("a", encoding="utf-8") as written:
        written.write(f"{line}\n")
    found = offences(tree)
    assert any(sentence.endswith(complaint) for sentence in found), found
    assert len(found) == (2 if how == "of what leads to another target" else 1), found
