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

from qwen3_export.targets.onnx.run import OnnxSession
from qwen3_export.targets.onnx.versions import OLDEST, oldest_runtime

# A folder with a subfolder for each version (1.23, 1.31) into which `pip install --target` has put it.
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
    ("moe", "int4", {}),
    ("moe", "int8", {}),
    ("moe", "int8", JS),
]


@pytest.mark.parametrize(("variant", "recipe", "options"), CASES)
def test_the_oldest_one_runs_it(
    exported: Callable[..., Any], variant: str, recipe: str, options: dict[str, Any], tmp_path: Path
) -> None:
    runtimes = os.environ.get(VARIABLE)
    if runtimes is None:
        pytest.skip(f"needs {VARIABLE}: a folder with the oldest releases of onnxruntime")
    written = exported(variant, recipe, **options)
    path = written.folder / written.export.graph_file
    from qwen3_export.targets.onnx.read import open_onnx

    version = oldest_runtime(open_onnx(written.folder))
    old, out = Path(runtimes) / version, tmp_path / "logits.npy"
    command = [sys.executable, "-c", RUN, str(old), str(path), json.dumps(TOKENS), str(out)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    expected = OnnxSession(path, written.model.graph.config).logits(TOKENS)
    # Of two releases, one may round activations to int8 where the other does not.
    np.testing.assert_allclose(np.load(out), expected, atol=0.05 * float(np.abs(expected).max()))


def test_what_is_needed(exported: Callable[..., Any]) -> None:
    from qwen3_export.targets.onnx.read import open_onnx

    needed = {
        ("moe", "int8", "genai"): "1.31",
        ("moe", "int4", "genai"): "1.31",
        ("moe", "int8", "transformers.js"): "1.31",
        ("moe", "int4", "transformers.js"): "1.23",
        ("moe", "fp32", "genai"): "1.23",
        ("tied", "int4", "genai"): "1.23",
    }
    for (variant, recipe, flavour), version in needed.items():
        assert oldest_runtime(open_onnx(exported(variant, recipe, flavour=flavour).folder)) == version
    assert OLDEST == "1.23"


def test_lint_says_so(exported: Callable[..., Any]) -> None:
    from qwen3_export.targets.onnx import doors

    written = exported("moe", "int4")
    found = list(doors.lint(written.folder, written.model)[1])
    assert [(finding.text, finding.is_error) for finding in found] == [
        ("needs onnxruntime 1.31 or newer, which knows QMoE's accuracy_level", False)
    ]
    written = exported("moe", "int8", **JS)
    assert any("1.31" in finding.text for finding in doors.lint(written.folder, written.model)[1])
