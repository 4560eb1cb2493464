"""The Python interface does what the README shows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qwen3_export as qx


def test_the_readmes_example(tmp_path: Path) -> None:
    model = qx.load("demo")
    export = qx.prepare(model, qx.find_recipe("q8_0"), out=tmp_path / "demo.gguf")
    qx.emit(export.files)
    stored = qx.read(tmp_path / "demo.gguf", model)
    for weight in export.graph:
        np.testing.assert_array_equal(stored.weights[weight.name].read(), weight.read())
    report = qx.check(tmp_path / "demo.gguf", model)
    assert report.verdict in ("pass", "not_run")
    assert report.quantization.mean_kld < 1e-3


def test_every_name_is_there_and_no_other() -> None:
    for name in qx.__all__:
        assert getattr(qx, name) is not None
    with pytest.raises(AttributeError):
        qx.nothing  # noqa: B018


def test_importing_costs_nothing() -> None:
    code = "import sys, qwen3_export; print([m for m in ('torch', 'numpy', 'gguf') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
