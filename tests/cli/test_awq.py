"""qwen3-export gguf --method awq, as a user types it, and the check of files whose scales were moved."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from checks import checked

from qwen3_export.checkpoint.model import load
from qwen3_export.quantizers.transforms import Fold, Pair, fold
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.recipes import find_recipe


def test_the_file_and_its_report_say_how_it_was_made(run, text: Path, tmp_path: Path) -> None:
    outcome = run(
        "gguf", "--model", "demo", "--quant", "q4_0", "--method", "awq", "--calibration", text, "--samples", "2"
    )
    assert outcome.code == 0, outcome.err
    assert "forecast" in outcome.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo-q4_0.gguf", "demo-q4_0.report.json"]
    report = json.loads((tmp_path / "demo-q4_0.report.json").read_text())
    assert (report["method"], report["values"], report["metadata"]) == ("awq", [], [])
    assert report["calibration"]["dataset"] == text.name
    assert set(report["calibration"]["tensor_errors"]) >= {"token_embd.weight", "blk.0.attn_q.weight"}
    norms = [t for t in gguf.GGUFReader("demo-q4_0.gguf").tensors if t.name == "blk.0.attn_norm.weight"]
    original = load("demo").graph.weights["model.layers.0.input_layernorm"].read()
    assert not np.array_equal(norms[0].data, original)
    assert "qwen3_export.scales.places" in run("inspect", "demo-q4_0.gguf").out


@pytest.mark.parametrize(
    ("recorded", "words"),
    [(1.0, None), (1.25, "differs from the checkpoint"), (None, "numbers are needed")],
)
def test_scales_other_than_those_that_were_moved_are_found_out(
    recorded: float | None, words: str | None, tmp_path: Path
) -> None:
    model, recipe, place = load("demo"), find_recipe("q8_0"), Fold(Pair.INPUT_LAYERNORM, 2)
    scale = np.geomspace(0.5, 2, model.graph.config.hidden_size, dtype=np.float32)
    formats = prepare(model, recipe, out=tmp_path / "x.gguf").weight_formats
    told = scale[:-1] if recorded is None else scale * np.float32(recorded)
    provenance = Provenance(recipe="q8_0", file_type=recipe.file_type, method="awq", scales={place: told})
    stored = round_graph(fold(model.graph, {place: scale}), formats)
    emit(plan_files(stored, build_metadata(model, provenance), tmp_path / "x.gguf"))
    report = checked("gguf", tmp_path / "x.gguf", model.graph, model.tokenizer)
    sentences = (*report.values, *report.metadata)
    assert bool(sentences) == (words is not None)
    assert words is None or any(words in sentence for sentence in sentences)


def test_an_importance_matrix_is_for_plain_rounding(run) -> None:
    outcome = run("gguf", "--model", "demo", "--method", "awq", "--imatrix", "x.gguf", "--no-check")
    assert outcome.code == 1
    assert "awq measures more" in outcome.err.splitlines()[-1]
