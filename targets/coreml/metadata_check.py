"""Compare what a Core ML folder declares with the checkpoint: inputs, states, numbers, RoPE tables, documents.

Expected values come from the checkpoint's config and tokenizer, not from the code that writes packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qwen3_export.checkpoint.template import token_content
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.config import Qwen3Config
from qwen3_export.graph import Graph
from qwen3_export.parity.documents import document_differences, read_json
from qwen3_export.rope import rotation
from qwen3_export.targets.coreml.blobs import read_values
from qwen3_export.targets.coreml.documents import end_token
from qwen3_export.targets.coreml.names import (
    ATTENTION_MASK,
    COS_TABLE,
    FULL_MASK,
    INPUT_IDS,
    KEY_CACHE,
    LOGITS,
    POSITIONS,
    ROOT_EPS,
    SIN_TABLE,
    VALUE_CACHE,
)
from qwen3_export.targets.coreml.read import CoremlFile
from qwen3_export.targets.coreml.storage import VALUES

__all__ = ["context_length", "interface_differences", "metadata_differences"]

ATTENTION_SCALE, MASKED = "attention_scale", "masked"
EOS_ID = "eos_token_id"
# The lowest mask value that, with a score added, stays within fp16 (whose lowest number is -65504).
LEAST_MASK = -50000.0


def metadata_differences(file: CoremlFile, graph: Graph, tokenizer: Tokenizer) -> list[str]:
    """List everything that differs from the checkpoint, one sentence each."""
    config = graph.config
    return [
        *interface_differences(file, graph),
        *_layers(file, config),
        *_numbers(file, config),
        *_tables(file, config),
        *_documents(file.folder, tokenizer),
    ]


def interface_differences(file: CoremlFile, graph: Graph) -> list[str]:
    """List inputs, outputs and states that swift-transformers would not find or that do not fit the checkpoint."""
    return [*_interface(file), *_states(file, graph.config)]


def context_length(file: CoremlFile) -> int:
    """The longest sequence that the package takes, by its mask's largest number of columns, or 0 without a mask."""
    mask = _mask(file)
    ranges = _ranges(file, mask)
    spare = 1 if mask == ATTENTION_MASK else 0
    return ranges[-1][1] - spare if ranges else 0


def _mask(file: CoremlFile) -> str:
    names = {feature.name for feature in file.spec.description.input}
    return FULL_MASK if FULL_MASK in names else ATTENTION_MASK


def _interface(file: CoremlFile) -> Iterator[str]:
    """Check the names and sizes that swift-transformers looks for."""
    description = file.spec.description
    found = {
        "inputs": [feature.name for feature in description.input],
        "states": [feature.name for feature in description.state],
        "outputs": [feature.name for feature in description.output],
    }
    mask = _mask(file)
    wanted = {"inputs": [INPUT_IDS, mask], "states": [KEY_CACHE, VALUE_CACHE], "outputs": [LOGITS]}
    for part, names in wanted.items():
        if sorted(found[part]) != sorted(names):
            yield f"{part} are {', '.join(found[part]) or 'none'}, where swift-transformers wants {', '.join(names)}"
            return
    longest = context_length(file)
    masks = {ATTENTION_MASK: [(1, 1), (2, longest + 1)], FULL_MASK: [(1, longest), (1, longest)]}
    for name, ranges in ((INPUT_IDS, [(1, 1), (1, longest)]), (mask, [(1, 1), (1, 1), *masks[mask]])):
        if _ranges(file, name) != ranges:
            yield f"{name} takes {_ranges(file, name)}, where {ranges} is needed"


def _ranges(file: CoremlFile, name: str) -> list[tuple[int, int]]:
    """The smallest and largest size of each axis of an input."""
    for feature in file.spec.description.input:
        if feature.name == name:
            sizes = feature.type.multiArrayType.shapeRange.sizeRanges
            return [(int(size.lowerBound), int(size.upperBound)) for size in sizes]
    return []


def _states(file: CoremlFile, config: Qwen3Config) -> Iterator[str]:
    longest = context_length(file)
    if not 0 < longest <= config.context_length:
        yield f"the package takes {longest} positions, the checkpoint has {config.context_length}"
    expected = (config.num_hidden_layers, 1, config.num_key_value_heads, config.head_dim)
    for feature in file.spec.description.state:
        shape = tuple(int(size) for size in feature.type.stateType.arrayType.shape)
        if (*shape[:3], *shape[4:]) != expected or shape[3] < longest:
            yield f"state {feature.name} has shape {list(shape)}, which does not go with the checkpoint's heads"


def _layers(file: CoremlFile, config: Qwen3Config) -> Iterator[str]:
    kinds = [operation.type for operation in file.operations]
    layers = kinds.count("softmax") + kinds.count("scaled_dot_product_attention")
    if layers != config.num_hidden_layers:
        yield f"the program has {layers} layers, the checkpoint {config.num_hidden_layers}"


def _numbers(file: CoremlFile, config: Qwen3Config) -> Iterator[str]:
    """Check the numbers that the program holds as fp32 constants."""
    expected = {ROOT_EPS: config.rms_norm_eps**0.5, ATTENTION_SCALE: config.head_dim**-0.5}
    scalars = dict(_scalars(file))
    found = {name: scalars[name] for name in expected if name in scalars}
    if ROOT_EPS not in found:
        yield f"{ROOT_EPS} is missing"
    masked = scalars.get(MASKED)
    if masked is not None and masked < LEAST_MASK:
        yield f"{MASKED} is {masked:g}: with a score added, fp16 can be infinite, and then no number; use -30000"
    for name, value in found.items():
        if np.float32(value) != np.float32(expected[name]):
            yield f"{name} is {value:g}, the checkpoint gives {expected[name]:g}"


def _scalars(file: CoremlFile) -> Iterator[tuple[str, float]]:
    for operation in file.operations:
        if operation.type == "const":
            values = operation.attributes["val"].immediateValue.tensor.floats.values
            if len(values) == 1:
                yield operation.outputs[0].name, float(values[0])


def _tables(file: CoremlFile, config: Qwen3Config) -> Iterator[str]:
    length = context_length(file)
    if not 0 < length <= config.context_length:  # told of already, and tables of any size would be made
        return
    turn = rotation(config, start=0, count=length)
    tables = {COS_TABLE: turn.cos.numpy(), SIN_TABLE: turn.sin.numpy()}
    if _mask(file) == ATTENTION_MASK:
        tables[POSITIONS] = np.arange(length, dtype=np.float32)
    for name, expected in tables.items():
        parts = file.constants.get(name, {})
        if VALUES not in parts:
            yield f"{name} is missing"
        elif parts[VALUES].shape != expected.shape:
            yield f"{name} has shape {list(parts[VALUES].shape)}, the checkpoint needs {list(expected.shape)}"
        elif not np.array_equal(read_values(file.weight_path, parts[VALUES]).reshape(expected.shape), expected):
            told = "other angles than the checkpoint's rope_theta and rope_scaling give"
            yield f"{name} holds {'other numbers than 0, 1, 2, …' if name == POSITIONS else told}"


def _documents(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Check the files beside the package, which an app needs."""
    if folder.suffix == ".mlpackage":
        return
    for name, own in (("tokenizer_config.json", {"chat_template", *_names(tokenizer)}), ("config.json", {EOS_ID})):
        path = folder / name
        if not path.exists():
            yield f"{name} is missing"
        elif _without(read_json(path), own) != _without(read_json(tokenizer.folder / name) or {}, own):
            yield f"{name} is not the checkpoint's"
    yield from _ends(folder, tokenizer)
    yield from document_differences(folder, tokenizer)


def _ends(folder: Path, tokenizer: Tokenizer) -> Iterator[str]:
    """Check the one token at which swift-transformers stops."""
    settings, config = (read_json(folder / name) or {} for name in ("tokenizer_config.json", "config.json"))
    ends, token = tokenizer.generation.eos_token_ids, end_token(tokenizer)
    wanted = tokenizer.decode(ends[:1]) if token is None else token
    found = token_content(settings.get("eos_token"))
    if found is not None and found != wanted:
        yield f"tokenizer_config.json: eos_token is {found}, and turns end with {wanted}"
    if token is not None and config.get(EOS_ID) != tokenizer.generation.turn_end_id:
        yield f"config.json: {EOS_ID} is {config.get(EOS_ID)}, and turns end with {tokenizer.generation.turn_end_id}"


def _names(tokenizer: Tokenizer) -> set[str]:
    """The named tokens, which are written where transformers has them from elsewhere."""
    return set() if tokenizer.template is None else {"eos_token", *tokenizer.template.tokens}


def _without(document: Any, keys: set[str]) -> Any:
    return {key: value for key, value in document.items() if key not in keys} if isinstance(document, dict) else None
