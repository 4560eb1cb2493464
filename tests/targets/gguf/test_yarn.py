"""YaRN in a GGUF file: llama.cpp computes what transformers computes, whatever the config states of its factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import checks
import pytest
from models import DENSE, YARN, write_model

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.config import parse_config
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.parity import check as check_module
from qwen3_export.parity.prompts import Prompt
from qwen3_export.targets.gguf.container import MetaType, MetaValue
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.metadata_check import metadata_differences
from qwen3_export.targets.gguf.names import check_representable
from qwen3_export.targets.gguf.read import open_gguf
from qwen3_export.targets.gguf.recipes import find_recipe

SHORT = 24


@pytest.fixture(autouse=True)
def _short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = check_module.tokenize_prompts

    def shortened(*arguments: object, **options: object) -> tuple[Prompt, ...]:
        return tuple(replace(prompt, tokens=prompt.tokens[:SHORT]) for prompt in whole(*arguments, **options))

    monkeypatch.setattr(check_module, "tokenize_prompts", shortened)


def written(
    folder: Path, scaling: Mapping[str, Any], extra: Mapping[str, MetaValue] | None = None
) -> tuple[Model, Path]:
    """A file of a model with this rope_scaling; ``extra`` metadata replaces ours."""
    model = load(write_model(folder / "m", "tied", num_hidden_layers=1, rope_scaling={**YARN, **scaling}))
    recipe, path = find_recipe("q8_0"), folder / "m.gguf"
    graph = prepare(model, recipe, out=path).graph
    metadata = build_metadata(model, Provenance(recipe=recipe.name, file_type=recipe.file_type))
    emit(plan_files(graph, {**metadata, **(extra or {})}, path))
    return model, path


def float_of(value: float) -> MetaValue:
    return MetaValue(MetaType.FLOAT32, value)


@pytest.mark.parametrize(
    ("scaling", "stored"),
    [
        ({}, None),
        ({"attn_factor": 0.8782488562869419}, None),  # transformers does not read it
        ({"attention_factor": 1.0}, 0.8782488562869419),
        ({"attention_factor": 1.4}, 1.2295484),
        ({"mscale": 0.7, "mscale_all_dim": 1.2}, 0.82605587),
        ({"mscale": 0.7}, None),
    ],
    ids=str,
)
def test_llama_cpp_computes_what_transformers_computes(
    tmp_path: Path, scaling: dict[str, float], stored: float | None
) -> None:
    pytest.importorskip("llama_cpp")
    model, path = written(tmp_path, scaling)
    found = open_gguf(path).metadata.get("qwen3.rope.scaling.attn_factor")
    assert found is None if stored is None else found == pytest.approx(stored, rel=1e-6)
    report = checks.checked("gguf", path, model.graph, model.tokenizer, threads=1)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld < 1e-10


def test_a_factor_that_llama_cpp_multiplies_by_fails(tmp_path: Path) -> None:
    """As a file has it whose converter took attn_factor for what transformers computes."""
    model, path = written(
        tmp_path, {"attn_factor": 0.8782488562869419}, {"qwen3.rope.scaling.attn_factor": float_of(0.8782488562869419)}
    )
    differences = metadata_differences(open_gguf(path).metadata, model.graph, model.tokenizer)
    assert [str(difference).partition(" ")[0] for difference in differences] == ["qwen3.rope.scaling.attn_factor"]
    pytest.importorskip("llama_cpp")
    report = checks.checked("gguf", path, model.graph, model.tokenizer, threads=1)
    assert report.conversion.status == "fail"


@pytest.mark.parametrize("name", ["beta_fast", "beta_slow"])
def test_llama_cpps_qwen3_reads_no_limits_of_the_blend(tmp_path: Path, name: str) -> None:
    """Its keys for them are read for other architectures alone; if this fails, they can be written."""
    pytest.importorskip("llama_cpp")
    model, path = written(tmp_path, {}, {f"qwen3.rope.scaling.yarn_{name}": float_of(7.0)})
    report = checks.checked("gguf", path, model.graph, model.tokenizer, threads=1)
    assert report.conversion.status == "pass"


@pytest.mark.parametrize(
    ("scaling", "word"),
    [({"beta_fast": 20.0}, "beta_fast"), ({"beta_slow": 2.0}, "beta_slow"), ({"truncate": False}, "truncate")],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(scaling: dict[str, Any], word: str) -> None:
    with pytest.raises(UnsupportedModelError, match=word):
        check_representable(parse_config({**DENSE, "rope_scaling": {**YARN, **scaling}}))


def test_a_context_that_yarn_extends_is_stated(tmp_path: Path) -> None:
    """Configs keep max_position_embeddings when YaRN is switched on as the model cards say."""
    model, path = written(tmp_path, {"factor": 8.0})
    metadata = dict(open_gguf(path).metadata)
    assert metadata["qwen3.context_length"] == 8 * 512
    assert not metadata_differences(metadata, model.graph, model.tokenizer)
    # What llama.cpp's converter writes computes the same.
    metadata["qwen3.context_length"] = 2048
    assert not metadata_differences(metadata, model.graph, model.tokenizer)
    metadata["qwen3.context_length"] = 4095
    assert len(metadata_differences(metadata, model.graph, model.tokenizer)) == 1
