"""Compare what an ONNX folder declares with the checkpoint: operator attributes, RoPE tables, configs.

Expected values come from the checkpoint's config and tokenizer, not from the code that writes graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.checkpoint.template import TEMPLATE_FILE
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.config import Qwen3Config
from qwen3_export.files.json_file import object_in
from qwen3_export.files.positional import read_exactly
from qwen3_export.files.shown import shown
from qwen3_export.graph import Graph
from qwen3_export.parity.documents import SETTINGS, document_differences, read_json
from qwen3_export.rope import rotation
from qwen3_export.targets.onnx.names import COS_CACHE, SIN_CACHE
from qwen3_export.targets.onnx.read import OnnxFile, nodes_with_attributes

__all__ = ["metadata_differences"]

# Where onnxruntime-genai looks for a template; transformers.js knows the first alone.
GENAI_READS = (SETTINGS, TEMPLATE_FILE)

Attributes = Mapping[str, Any]

# Only this many positions of the RoPE tables are compared.
COMPARED_POSITIONS = 4096
# How much of a list is shown in a message.
MOST_TOLD = 8


def metadata_differences(file: OnnxFile, graph: Graph, tokenizer: Tokenizer, *, is_foreign: bool = False) -> list[str]:
    """List everything that differs from the checkpoint, one sentence each.

    Another tool's graph (``is_foreign``) may say the same in other operators and names, so that what it lacks is no
    difference; what it states is compared all the same.
    """
    config = graph.config
    return [
        *_operators(file, config, is_foreign=is_foreign),
        *_rope_tables(file, config, is_foreign=is_foreign),
        *_genai(file, config, tokenizer),
        *_javascript(file.folder / "config.json", config),
        *_ends(file, tokenizer),
        *document_differences(file.folder, tokenizer, first_of=(SETTINGS,) if is_javascript(file) else GENAI_READS),
    ]


def _operators(file: OnnxFile, config: Qwen3Config, *, is_foreign: bool) -> Iterator[str]:
    """Compare the attributes of each kind of operator. Only the first node that differs is listed for each kind."""
    told: set[tuple[str, str]] = set()
    counts = {"GroupQueryAttention": 0}
    for node, attributes in nodes_with_attributes(file.proto.graph):
        if node.op_type in counts:
            counts[node.op_type] += 1
        expected = EXPECTED.get(node.op_type)
        for key, value in (expected(config, attributes) if expected else {}).items():
            found = attributes.get(key)
            if not _equal(found, value) and (node.op_type, key) not in told:
                told.add((node.op_type, key))
                yield f"{node.name}: {key} is {found}, the checkpoint has {value}"
    is_built_otherwise = is_foreign and not counts["GroupQueryAttention"]
    if counts["GroupQueryAttention"] != config.num_hidden_layers and not is_built_otherwise:
        yield f"the graph has {counts['GroupQueryAttention']} layers, the checkpoint {config.num_hidden_layers}"


def _equal(found: object, expected: object) -> bool:
    if isinstance(expected, float) and isinstance(found, float):
        return bool(np.float32(found) == np.float32(expected))
    if isinstance(found, bytes):
        found = found.decode(errors="replace")
    return found == expected


def _norm(config: Qwen3Config, _attributes: Attributes) -> dict[str, Any]:
    return {"epsilon": config.rms_norm_eps}


def _attention(config: Qwen3Config, _attributes: Attributes) -> dict[str, Any]:
    return {
        "num_heads": config.num_attention_heads,
        "kv_num_heads": config.num_key_value_heads,
        "scale": config.head_dim**-0.5,
    }


def _mixture(config: Qwen3Config, _attributes: Attributes) -> dict[str, Any]:
    return {
        "k": config.num_experts_per_tok,
        "normalize_routing_weights": 1,
        "activation_type": "swiglu",
        "activation_alpha": 1.0,
        "activation_beta": 0.0,
    }


EXPECTED: Mapping[str, Callable[[Qwen3Config, Attributes], dict[str, Any]]] = {
    "SimplifiedLayerNormalization": _norm,
    "SkipSimplifiedLayerNormalization": _norm,
    "GroupQueryAttention": _attention,
    "MoE": _mixture,
    "QMoE": _mixture,
}


def _rope_tables(file: OnnxFile, config: Qwen3Config, *, is_foreign: bool) -> Iterator[str]:
    places = [file.initializers.get(name) for name in (COS_CACHE, SIN_CACHE)]
    for name, place in zip((COS_CACHE, SIN_CACHE), places, strict=True):
        if place is None:
            if not is_foreign:
                yield f"{name} is missing"
            continue
        length = min(place.num_rows, COMPARED_POSITIONS)
        if place.shape[1:] != (config.head_dim // 2,):
            yield f"{name} has shape {list(place.shape)}, the checkpoint needs [positions, {config.head_dim // 2}]"
            continue
        turn = rotation(config, start=0, count=length)
        expected = (turn.cos if name == COS_CACHE else turn.sin).numpy()
        data = read_exactly(file.path_of(place), place.offset, length * place.row_bytes, part=name)
        found = np.frombuffer(data, np.dtype(place.dtype)).reshape(length, -1)
        if not np.array_equal(found, expected.astype(found.dtype)):
            yield f"{name} holds other angles than the checkpoint's rope_theta and rope_scaling give"


def _genai(file: OnnxFile, config: Qwen3Config, tokenizer: Tokenizer) -> Iterator[str]:
    path = file.folder / "genai_config.json"
    if not path.exists():
        return
    document = read_json(path)
    if document is None:
        yield f"{path.name} cannot be read"
        return
    model, decoder = object_in(document, "model"), object_in(document, "model", "decoder")
    eos = model.get("eos_token_id")
    expected = {
        "vocab_size": (model.get("vocab_size"), config.vocab_size),
        "eos_token_id": (eos if isinstance(eos, list) else [eos], list(tokenizer.generation.eos_token_ids)),
        "head_size": (decoder.get("head_size"), config.head_dim),
        "hidden_size": (decoder.get("hidden_size"), config.hidden_size),
        "num_attention_heads": (decoder.get("num_attention_heads"), config.num_attention_heads),
        "num_hidden_layers": (decoder.get("num_hidden_layers"), config.num_hidden_layers),
        "num_key_value_heads": (decoder.get("num_key_value_heads"), config.num_key_value_heads),
    }
    for key, (found, wanted) in expected.items():
        if found != wanted:
            yield f"{path.name}: {key} is {_told(found)}, the checkpoint has {wanted}"
    yield from _lengths(file, document, config)


def _lengths(file: OnnxFile, document: Mapping[str, Any], config: Qwen3Config) -> Iterator[str]:
    """How long a text may be: what is stated, what the RoPE tables hold, and what the model is good for."""
    stated = object_in(document, "model").get("context_length")
    table = file.initializers.get(COS_CACHE)
    held = config.context_length if table is None else table.num_rows
    if not isinstance(stated, int):
        yield f"genai_config.json: context_length is {shown(stated)}, the checkpoint has {config.context_length}"
    elif table is not None and stated != held:
        yield f"genai_config.json: context_length is {shown(stated)}, the graph's RoPE tables hold {held} positions"
    elif stated > held:
        yield f"genai_config.json: context_length is {shown(stated)}, the checkpoint has {held}"
    longest = object_in(document, "search").get("max_length")
    if isinstance(longest, int) and isinstance(stated, int) and longest > stated:
        yield f"genai_config.json: max_length is {longest}, more than its context_length {stated}"


def is_javascript(file: OnnxFile) -> bool:
    """Whether a folder is laid out for transformers.js."""
    return file.graph_path.parent.name == "onnx"


def _ends(file: OnnxFile, tokenizer: Tokenizer) -> Iterator[str]:
    """Check the end tokens that transformers.js reads."""
    if not is_javascript(file):
        return
    stated = (read_json(file.folder / "generation_config.json") or {}).get("eos_token_id")
    found = stated if isinstance(stated, list) else [stated]
    missing = [token for token in tokenizer.generation.eos_token_ids if token not in found]
    if missing:
        yield f"generation_config.json: eos_token_id {_told(stated)} lacks {', '.join(map(str, missing))}"


def _javascript(path: Path, config: Qwen3Config) -> Iterator[str]:
    if not path.exists():
        return
    document = read_json(path)
    if document is None:
        yield f"{path.name} cannot be read"
        return
    for key in ("vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_size"):
        if document.get(key) != getattr(config, key):
            yield f"{path.name}: {key} is {shown(document.get(key))}, the checkpoint has {getattr(config, key)}"


def _told(value: object) -> str:
    """A value of a config for a message; a list with what it holds, cut short."""
    return f"[{', '.join(map(shown, value[:MOST_TOLD]))}]" if isinstance(value, list) else shown(value)
