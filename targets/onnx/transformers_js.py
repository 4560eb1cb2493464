"""The configs that transformers.js reads beside the graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from qwen3_export.checkpoint.model import Model
from qwen3_export.targets.documents import generation_document

__all__ = ["JavascriptGraph", "build_config", "build_generation_config", "is_same_model", "merge_config"]

# Entries of config.json that differ between graphs of one model: the context may be another.
OF_GRAPHS = ("transformers.js_config", "max_position_embeddings")


@dataclass(frozen=True, slots=True, kw_only=True)
class JavascriptGraph:
    """One graph of a folder: its path in the folder, what transformers.js calls its number type, and its data."""

    file: str
    dtype: str
    num_data_files: int
    has_fp16_cache: bool


def build_config(model: Model, graph: JavascriptGraph, *, context_length: int) -> dict[str, Any]:
    """The checkpoint's ``config.json`` plus ``transformers.js_config``, which lists graphs with external weights.

    The value for a graph is its number of data files: ``model_q4.onnx_data``, ``model_q4.onnx_data_1``, … The number
    type of the KV cache is there for releases that do not read it from the graph.
    """
    document = json.loads((model.folder / "config.json").read_text(encoding="utf-8"))
    own: dict[str, Any] = {"use_external_data_format": {PurePosixPath(graph.file).name: graph.num_data_files}}
    own |= {"kv_cache_dtype": {graph.dtype: "float16"}} if graph.has_fp16_cache else {}
    return {**document, "max_position_embeddings": context_length, "transformers.js_config": own}


def merge_config(document: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A folder's new ``config.json`` together with what the old one says of other graphs."""
    own, kept = (dict(config.get("transformers.js_config") or {}) for config in (document, other))
    for key in ("use_external_data_format", "kv_cache_dtype"):
        merged = {**_mapping(kept.get(key)), **_mapping(own.get(key))}
        if merged:
            own[key] = merged
    return {**document, "transformers.js_config": own}


def is_same_model(document: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two configs of folders differ in nothing but their graphs."""
    one, two = ({key: value for key, value in config.items() if key not in OF_GRAPHS} for config in (document, other))
    return one == two


def _mapping(value: object) -> dict[str, Any]:
    """Other forms, such as one value for all graphs, are those of folders that we did not write."""
    return dict(value) if isinstance(value, dict) else {}


def build_generation_config(model: Model) -> dict[str, Any]:
    """The checkpoint's ``generation_config.json`` with every end token, or one made from its tokenizer's settings."""
    document: dict[str, Any] = json.loads(generation_document(model))
    return document
