"""Exports of every kind of model and recipe through onnxruntime: what is written computes what it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from checks import checked

pytest.importorskip("onnxruntime")

from qwen3_export.parity.report import Gates

JS = {"flavour": "transformers.js"}
ASYMMETRIC = {"asymmetric": True}

CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("tied", "fp32", {}),
    ("tied", "int4", ASYMMETRIC),
    ("untied", "int4", JS),
    ("untied", "int4_int8", {"group_size": 64}),
    ("yarn", "fp32", JS),
    ("yarn", "int4", {"group_size": 16}),
    ("rows_of_320", "int8", {}),
    ("resized_vocabulary", "int4", {"group_size": 128}),
    ("tied", "fp16", {}),
    ("tied", "int4_fp16", JS),
    ("moe", "fp32", {}),
    ("moe", "int4", {}),
    ("moe_cold", "int8", ASYMMETRIC),
    ("moe_fused", "int8", {}),
    ("moe_shares_as_they_are", "int4_int8", JS),
    ("moe_with_dense_layers", "int4", ASYMMETRIC),
]


@pytest.mark.parametrize(("variant", "recipe", "options"), CASES)
def test_every_kind_of_model_passes(
    exported: Callable[..., Any], variant: str, recipe: str, options: dict[str, Any]
) -> None:
    written = exported(variant, recipe, **options)
    report = checked("onnx", written.folder, written.model.graph, written.model.tokenizer)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-10
    assert report.conversion.max_abs is not None
    assert report.conversion.max_abs < 1e-3
    assert report.shipped.status == report.decode.status == "pass"
    assert (report.target, report.recipe, report.method) == ("onnx", recipe, "rtn")


def test_the_demo_is_what_it_was(exported: Callable[..., Any]) -> None:
    """fp32 is exact end to end; int4's numbers are those of its codes and of int8 activations."""
    exact = exported("demo", "fp32")
    report = checked("onnx", exact.folder, exact.model.graph, exact.model.tokenizer)
    assert report.end_to_end.mean_kld is not None
    assert report.end_to_end.mean_kld < 1e-9
    four = exported("demo", "int4")
    report = checked("onnx", four.folder, four.model.graph, four.model.tokenizer, gates=Gates(max_mean_kld=1e-6))
    assert report.quantization.mean_kld is not None
    assert 1e-3 < report.quantization.mean_kld < 4e-2
    assert report.shipped.mean_kld is not None
    assert 1e-5 < report.shipped.mean_kld < 1e-3
    assert report.verdict == "fail"
    assert "mean KLD" in report.gates[0]
    assert report.bits_per_weight == pytest.approx(5.016, abs=1e-3)


def test_accuracy_level_one_ships_what_is_exact(exported: Callable[..., Any]) -> None:
    written = exported("tied", "int4", accuracy_level=1)
    report = checked("onnx", written.folder, written.model.graph, written.model.tokenizer)
    assert report.verdict == "pass"
    assert report.shipped.mean_kld is not None
    assert report.shipped.mean_kld < 1e-9


def test_without_onnxruntime_nothing_is_claimed(exported: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from qwen3_export.targets.onnx import run

    monkeypatch.setattr(run, "is_installed", lambda: False)
    monkeypatch.setattr(run, "runtime_version", lambda: None)
    written = exported("tied", "int4")
    report = checked("onnx", written.folder, written.model.graph, written.model.tokenizer)
    assert report.verdict == "not_run"
    assert report.quantization.status == "pass"
    assert "onnxruntime is not installed" in report.reasons[-1]
