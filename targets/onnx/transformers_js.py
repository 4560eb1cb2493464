"""The configs that transformers.js reads beside the graph."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from qwen3_export.checkpoint.model import Model
from qwen3_export.targets.documents import generation_document

__all__ = ["build_config", "build_generation_config"]


def build_config(model: Model, *, graph_file: str, has_fp16_cache: bool) -> dict[str, Any]:
    """The checkpoint's ``config.json`` plus ``transformers.js_config``, which lists graphs with external weights.

    The value for a graph is its number of data files: ``model_q4.onnx_data`` is the first and only one. The number type
    of the KV cache is there for releases that do not read it from the graph.
    """
    document = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    own: dict[str, Any] = {"use_external_data_format": {PurePosixPath(graph_file).name: 1}}
    own |= {"kv_cache_dtype": "float16"} if has_fp16_cache else {}
    return {**document, "transformers.js_config": own}


def build_generation_config(model: Model) -> dict[str, Any]:
    """The checkpoint's ``generation_config.json`` with every end token, or one made from its tokenizer's settings."""
    document: dict[str, Any] = json.loads(generation_document(model))
    return document
