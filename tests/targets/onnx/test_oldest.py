"""The oldest onnxruntime that each recipe is promised for computes what the installed one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

pytest.importorskip("onnx")

from qwen3_export.targets.onnx import doors
from qwen3_export.targets.onnx.read import open_onnx
from qwen3_export.targets.onnx.run import OnnxSession
from qwen3_export.targets.onnx.versions import NEEDS, OLDEST, find_needs, oldest_javascript, oldest_runtime

# A folder with a subfolder for each version (1.23, 1.24, 1.31) into which `pip install --target` has put it.
VARIABLE = "QWEN3_EXPORT_OLD_ONNXRUNTIMES"
TOKENS = [5, 900, 17, 2100, 44, 3, 8, 9]
RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
import numpy, onnxruntime
assert onnxruntime.__file__.startswith(sys.argv[1]), onnxruntime.__file__
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
ids = numpy.array([json.loads(sys.argv[3])], numpy.int64)
feeds = {"input_ids": ids, "attention_mask": numpy.ones_like(ids)}
for value in session.get_inputs():
    if value.name.startswith("past_key_values."):
        dtype = numpy.float16 if "16" in value.type else numpy.float32
        feeds[value.name] = numpy.zeros((1, value.shape[1], 0, value.shape[3]), dtype)
    elif value.name == "position_ids":
        feeds[value.name] = numpy.arange(ids.shape[1])[None]
numpy.save(sys.argv[4], session.run(["logits"], feeds)[0][0].astype(numpy.float32))
"""

JS = {"flavour": "transformers.js"}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(("tied", recipe, {}) for recipe in ("fp32", "fp16", "int8", "int4", "int4_int8", "int4_fp16")),
    *(("tied", recipe, JS) for recipe in ("fp32", "fp16", "int8", "int4", "int4_int8", "int4_fp16")),
    ("tied", "int4", {"asymmetric": True}),
    ("tied", "int8", {"accuracy_level": 1}),
    ("moe", "fp32", {}),
    ("moe", "int4", JS),
    ("moe", "int4_int8", JS),
    ("moe", "int4", JS | {"asymmetric": True}),
    ("moe", "int4", {}),
    ("moe", "int8", {}),
    ("moe", "int8", JS),
]


def oldest_of(folder: Path) -> str:
    return oldest_runtime(find_needs(open_onnx(folder).proto.graph))


def run_in(runtimes: str, version: str, path: Path, out: Path) -> subprocess.CompletedProcess[str]:
    old = Path(runtimes) / version
    assert old.is_dir(), f"{VARIABLE}: no folder {version}"
    command = [sys.executable, "-c", RUN, str(old), str(path), json.dumps(TOKENS), str(out)]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("variant", "recipe", "options"), CASES)
def test_the_oldest_one_runs_it(
    exported: Callable[..., Any], variant: str, recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    runtimes = os.environ.get(VARIABLE)
    if runtimes is None:
        pytest.skip(f"needs {VARIABLE}: a folder with the oldest releases of onnxruntime")
    written = exported(variant, recipe, **options)
    path = written.folder / written.export.graph_file
    version = oldest_of(written.folder)
    out = tmp_path / "logits.npy"
    done = run_in(runtimes, version, path, out)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = OnnxSession(path, written.model.graph.config).logits(TOKENS)
    # Of two releases, one may round activations to int8 where the other does not.
    np.testing.assert_allclose(np.load(out), expected, atol=0.05 * float(np.abs(expected).max()))


def test_older_ones_lack_zero_points_of_experts(exported: Callable[..., Any], tmp_path: Path) -> None:
    runtimes = os.environ.get(VARIABLE)
    if runtimes is None:
        pytest.skip(f"needs {VARIABLE}: a folder with the oldest releases of onnxruntime")
    written = exported("moe", "int4", **JS, asymmetric=True)
    assert oldest_of(written.folder) != OLDEST
    done = run_in(runtimes, OLDEST, written.folder / written.export.graph_file, tmp_path / "logits.npy")
    assert done.returncode != 0
    assert "QMoE" in done.stderr


def test_what_is_needed(exported: Callable[..., Any]) -> None:
    """For each graph, the oldest onnxruntime and the oldest transformers.js."""
    needed = {
        ("moe", "int8", "genai", False): ("1.31", None),
        ("moe", "int4", "genai", False): ("1.31", None),
        ("moe", "int8", "transformers.js", False): ("1.31", None),
        ("moe", "int4", "transformers.js", False): ("1.23", "4.0"),
        ("moe", "int4", "transformers.js", True): ("1.24", "4.0"),
        ("moe", "fp32", "genai", False): ("1.23", "4.0"),
        ("tied", "int4", "genai", False): ("1.23", "3.8"),
        ("tied", "int4", "transformers.js", True): ("1.23", "3.8"),
        ("tied", "int8", "transformers.js", False): ("1.23", "4.0"),
        ("tied", "int4_int8", "transformers.js", False): ("1.23", "4.0"),
    }
    for (variant, recipe, flavour, asymmetric), versions in needed.items():
        folder = exported(variant, recipe, flavour=flavour, asymmetric=asymmetric).folder
        needs = find_needs(open_onnx(folder).proto.graph)
        assert (oldest_runtime(needs), oldest_javascript(needs)) == versions, (variant, recipe, flavour)


def test_docs_and_package_say_so() -> None:
    root = Path(__file__).parents[3]
    rows = [f"| {need.graph} | {need.onnxruntime} | {need.transformers_js or 'none'} |" for need in NEEDS]
    table = "\n".join(["| graph | onnxruntime | transformers.js |", "|---|---|---|", *rows])
    assert table in (root / "docs" / "onnx.md").read_text(encoding="utf-8")
    assert f'"onnxruntime>={OLDEST}"' in (root / "pyproject.toml").read_text(encoding="utf-8")


def test_lint_says_so(exported: Callable[..., Any]) -> None:
    """And the export, before it is written."""
    accuracy = "needs onnxruntime 1.31 or newer; older releases lack accuracy_level in QMoE"
    zeros = "needs onnxruntime 1.24 or newer; older releases lack zero points in QMoE"
    nowhere = (
        "loads in no release of transformers.js up to 4.3, whose onnxruntime lacks accuracy_level in QMoE; "
        "use int4, int4_int8 or fp32"
    )
    old = "needs transformers.js 4.0 or newer; older releases lack "
    cases: list[tuple[str, str, dict[str, Any], list[tuple[str, bool]]]] = [
        ("moe", "int4", {}, [(accuracy, False)]),
        ("moe", "int8", JS, [(accuracy, False), (nowhere, True)]),
        ("moe", "int4", JS, [(f"{old}the model type qwen3_moe", False)]),
        (
            "moe",
            "int4",
            JS | {"asymmetric": True},
            [(zeros, False), (f"{old}the model type qwen3_moe and zero points in QMoE", False)],
        ),
        ("tied", "int8", JS, [(f"{old}MatMulNBits for 8 bits", False)]),
        ("tied", "int8", {}, []),
        ("tied", "fp16", JS, []),
    ]
    for variant, recipe, options, told in cases:
        written = exported(variant, recipe, **options)
        found = [(finding.text, finding.is_error) for finding in doors.lint(written.folder, written.model)[1]]
        assert found == told
        assert [f"this graph {text}" for text, _ in told] == [
            remark for remark in written.export.remarks if remark.startswith("this graph")
        ]


def test_logits_of_browsers_are_fp32(exported: Callable[..., Any], lint_edited: Callable[..., Any]) -> None:
    """transformers.js 3.8 takes fp16 ones for whole numbers without Float16Array; older exports have them."""
    for recipe in ("fp16", "int4_fp16"):
        for flavour, kind in (("transformers.js", 1), ("genai", 10)):
            proto = open_onnx(exported("tied", recipe, flavour=flavour).folder).proto
            logits = next(value for value in proto.graph.output if value.name == "logits")
            assert logits.type.tensor_type.elem_type == kind

    def as_before(proto: Any) -> None:
        logits = next(value for value in proto.graph.output if value.name == "logits")
        logits.type.tensor_type.elem_type = 10

    found = lint_edited(as_before, variant="tied", recipe="fp16", **JS)
    assert [finding.is_error for finding in found] == [False]
    assert "makes nonsense of fp16 logits" in found[0].text
