"""What a solver chose is recorded as a digest of values, and every target's file is read back to the same digest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import write_model

from qwen3_export import api
from qwen3_export.calibration.provenance import read_digests_record
from qwen3_export.calibration.tuning import run as tuning
from qwen3_export.calibration.tuning import text as tuning_text
from qwen3_export.calibration.tuning.run import TuneSettings
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.quantizers.weights.digests import value_digests
from qwen3_export.targets.gguf.read import open_gguf, recorded_digests
from qwen3_export.targets.registry import TARGETS


@pytest.fixture(scope="module", params=["tied", "moe"], ids=str)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load(write_model(tmp_path_factory.mktemp("solved") / request.param, request.param, num_hidden_layers=1))


def recorded(target: str, subject: Any, model: Model) -> dict[str, str]:
    """The record of an artifact."""
    if target == "gguf":
        return recorded_digests(open_gguf(subject.file.paths[0]), model.graph)
    return read_digests_record(subject.index if target == "executorch" else subject.file.metadata)


@pytest.mark.parametrize(
    ("target", "package", "recipe", "options"),
    [
        ("gguf", "gguf", "q2_k", {}),
        ("gguf", "gguf", "iq4_xs", {"split_max_size": "4M"}),
        ("onnx", "onnx_ir", "int4", {}),
        ("onnx", "onnx_ir", "q4f16", {"flavour": "transformers.js"}),
        ("executorch", "executorch", "8da4w", {}),
        ("coreml", "coremltools", "int4", {}),
        ("coreml", "coremltools", "palette4", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_file_has_the_digests_that_it_records(
    model: Model, text: Path, tmp_path: Path, target: str, package: str, recipe: str, options: dict[str, Any]
) -> None:
    pytest.importorskip(package)
    if model.graph.config.is_moe and (target, recipe) not in (("gguf", "q2_k"), ("onnx", "int4")):
        pytest.skip("a mixture of experts is tried once for each target that has them")
    plan = api.plan(model, target, recipe, out=tmp_path / ("m.gguf" if target == "gguf" else "m"), **options)
    chosen = api.calibration_text(text, model, sequence_length=32, num_samples=2)
    artifact = api.export(plan, method="gptq", text=chosen)
    subject: Any = TARGETS[target].doors.open_subject(Path(artifact), model.graph, model.tokenizer)
    digests = recorded(target, subject, model)
    matrices = [weight.name for weight in subject.stored if len(weight.shape) > 1]
    assert digests == {name: d for name, d in value_digests(subject.stored, matrices).items() if name in digests}
    assert len(digests) >= 7
    values = subject.compare_values(subject.stored, subject.original, is_full=True)
    assert (values.differences, values.notes) == ((), ())


@pytest.mark.parametrize(
    ("target", "package", "recipe"),
    [
        ("gguf", "gguf", "q4_k_m"),
        ("onnx", "onnx_ir", "int4"),
        ("executorch", "executorch", "8da4w"),
        ("coreml", "coremltools", "int4"),
        ("coreml", "coremltools", "palette4"),
    ],
)
def test_tuned_values_are_recorded_and_pass(
    model: Model,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    target: str,
    package: str,
    recipe: str,
) -> None:
    pytest.importorskip(package)
    if model.graph.config.is_moe and target not in ("gguf", "onnx"):
        pytest.skip("a mixture of experts is tried once for each target that has them")
    # Two steps, and what they give is kept whatever it loses.
    monkeypatch.setattr(tuning, "TuneSettings", lambda: TuneSettings(batch_tokens=128, epochs=2, rate=2e-3))
    monkeypatch.setattr(tuning_text, "DIALOGUE_WINDOWS", 1)
    monkeypatch.setattr(tuning_text, "TOKENS", 160)
    monkeypatch.setattr(tuning, "gains_everywhere", lambda *_: True)
    plan = api.plan(
        model, target, recipe, out=tmp_path / ("m.gguf" if target == "gguf" else "m"), method="gptq", tune=True
    )
    chosen = api.calibration_text(text, model, sequence_length=32, num_samples=2)
    artifact = api.export(plan, method="gptq", text=chosen)
    subject: Any = TARGETS[target].doors.open_subject(Path(artifact), model.graph, model.tokenizer)
    assert subject.artifact.tuning["keeps_solved"] is False
    digests = recorded(target, subject, model)
    norms = {weight.name for weight in model.graph if weight.role.is_norm}
    assert norms <= digests.keys()
    for norm in norms:
        share = subject.stored.weights[norm].read() / model.graph.weights[norm].read() - 1
        assert 0 < abs(share).max() < 0.1
    values = subject.compare_values(subject.stored, subject.original, is_full=True)
    assert (values.differences, values.notes) == ((), ())
