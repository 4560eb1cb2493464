"""A context that YaRN extends, or that ends where dual chunk attention begins: every target states the same length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from models import YARN, write_model

from qwen3_export import api
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import OptionError

EXTENDED = {"rope_scaling": {**YARN, "factor": 8.0}}  # 512 positions extended to 4096; max_position_embeddings is 2048
CUT = {"dual_chunk_attention_config": {"original_max_position_embeddings": 1024}}


@pytest.fixture(scope="module", params=[(EXTENDED, 4096), (CUT, 1024)], ids=["yarn", "dual chunk attention"])
def model_and_length(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, int]:
    changes, length = request.param
    folder = tmp_path_factory.mktemp("context") / "m"
    return load(write_model(folder, "tied", num_hidden_layers=1, **changes)), length


@pytest.mark.parametrize(
    ("target", "package", "recipe"), [("executorch", "executorch", "8da4w"), ("coreml", "coremltools", "fp16")]
)
def test_longest_context_that_may_be_asked_for(
    model_and_length: tuple[Model, int], target: str, package: str, recipe: str
) -> None:
    pytest.importorskip(package)
    model, length = model_and_length
    api.plan(model, target, recipe, context_length=length)
    with pytest.raises(OptionError, match=f"{length}"):
        api.plan(model, target, recipe, context_length=length + 1)


@pytest.mark.onnx
def test_genai_and_the_tables_of_its_graph(model_and_length: tuple[Model, int]) -> None:
    pytest.importorskip("onnx_ir")
    from qwen3_export.targets.onnx.genai_config import build_genai_config
    from qwen3_export.targets.onnx.names import COS_CACHE

    model, length = model_and_length
    assert (
        build_genai_config(model, graph_file="model.onnx", context_length=length)["model"]["context_length"] == length
    )
    plan: Any = api.plan(model, "onnx", "int4", context_length=length)
    assert plan.context_length == length
    assert plan.plan.constants[COS_CACHE][0].shape[0] == length


def test_gguf_and_its_modelfile(model_and_length: tuple[Model, int], tmp_path: Path) -> None:
    from qwen3_export.targets.gguf.read import open_gguf

    model, length = model_and_length
    artifact = api.export(api.plan(model, "gguf", "q8_0", out=tmp_path / "m.gguf", modelfile=True))
    assert open_gguf(Path(artifact)).metadata["qwen3.context_length"] == length
    assert f"num_ctx {length}" in (tmp_path / "Modelfile").read_text()
