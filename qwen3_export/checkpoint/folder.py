"""A Hugging Face checkpoint folder, opened as a Graph: configs and headers are read, weights are not.

What varies between Qwen3 checkpoints is settled here, so that nothing downstream sees it: one file or many
shards, experts apart or fused into one tensor, an ``lm_head`` that repeats the embedding it is tied to.
Every tensor of the config's model must be there with the config's shape, and no other may be: a checkpoint
that differs is refused, naming the first difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qwen3_export.checkpoint.safetensors_file import FLOAT_DTYPES, StoredTensor, StoredWeight, read_header
from qwen3_export.config import Qwen3Config, parse_config
from qwen3_export.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from qwen3_export.graph import Graph, Kind, Role, Weight, expected_weights, module_name

__all__ = ["open_checkpoint", "read_json"]

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# Buffers that some exporters wrote beside the weights and that nothing computes with.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)

# Tensors that hold all experts of a layer, and the projections that they hold of each.
FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}

EMBEDDING = Role(Kind.EMBED_TOKENS)
LM_HEAD = Role(Kind.LM_HEAD)
COMPARED_ROWS = 4096


def open_checkpoint(folder: Path, *, name: str | None = None) -> Graph:
    """Open a checkpoint folder (config.json and safetensors) without reading weights.

    ``name`` is what the user calls the model; the folder's name by default.  Raises CheckpointError for
    damaged or incomplete files, UnsupportedModelError for models that are no Qwen3 language model.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: not a folder; --model takes a checkpoint folder, a hub id or 'demo'")
    _refuse_adapters(folder)
    config = parse_config(read_json(folder / "config.json"))
    tensors = _unprefixed(_read_headers(folder))
    stored = _split_fused_experts(tensors, config)
    config, notes = _settle_head(stored, config)
    weights = _expected_only(stored, config, folder)
    return Graph(name=name or folder.resolve().name, config=config, weights=MappingProxyType(weights), notes=notes)


def read_json(path: Path) -> Mapping[str, Any]:
    """One JSON object.  Raises CheckpointError if it is missing or no object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path}: missing; a checkpoint folder has config.json, tokenizer.json and safetensors files"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); download it again") from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: holds no JSON object; download it again")
    return document


def _refuse_adapters(folder: Path) -> None:
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        raise UnsupportedModelError(
            f"{folder}: a LoRA adapter, not a model; merge it into its base first "
            "(peft: model.merge_and_unload(), then save_pretrained)"
        )


def _read_headers(folder: Path) -> dict[str, StoredTensor]:
    index = folder / INDEX_FILE
    if index.exists():
        return _read_sharded(folder, index)
    single = folder / SINGLE_FILE
    if single.exists():
        return read_header(single)
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        raise CheckpointError(f"{folder}: holds pickled weights; only safetensors are read, convert it first")
    raise CheckpointError(f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}; is the download complete?")


def _read_sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    shards = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not path.exists():
            raise CheckpointError(f"{index.name}: names {shard}, which is not in {folder}; download it")
        shards[shard] = read_header(path)
    tensors = {}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(f"{index.name}: says that {name} is in {shard}, and it is not; download both again")
        tensors[name] = shards[shard][name]
    return tensors


def _unprefixed(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By module name: without ``.weight``, and without buffers."""
    kept = {}
    for name, tensor in tensors.items():
        if not name.endswith(IGNORED_SUFFIXES):
            kept[name.removesuffix(".weight")] = tensor
    return kept


def _split_fused_experts(tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> dict[str, StoredTensor]:
    """Fused expert tensors as one tensor an expert: each is a contiguous part of the fused one.

    ``experts.gate_up_proj`` is [E, 2·I, D], gate first, and ``experts.down_proj`` [E, D, I].
    """
    if not config.is_moe:
        return dict(tensors)
    split = {}
    hidden, intermediate = config.hidden_size, config.moe_intermediate_size
    for name, tensor in tensors.items():
        parts = FUSED_EXPERTS.get(name.rpartition(".experts.")[2])
        if parts is None:
            split[name] = tensor
            continue
        shape = (hidden, intermediate) if parts == ("down_proj",) else (intermediate, hidden)
        fused = (config.num_experts, len(parts) * shape[0], shape[1])
        if tensor.shape != fused:
            raise CheckpointError(_shape_message(tensor, fused))
        size = tensor.num_bytes // (config.num_experts * len(parts))
        prefix = name.rpartition(".")[0]
        for position in range(config.num_experts * len(parts)):
            expert, part = divmod(position, len(parts))
            split[f"{prefix}.{expert}.{parts[part]}"] = replace(
                tensor, shape=shape, offset=tensor.offset + position * size, num_bytes=size
            )
    return split


def _settle_head(tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> tuple[Qwen3Config, tuple[str, ...]]:
    """Decide whether the head is tied from what is stored, not only from what the config says."""
    embedding, head = tensors.get(module_name(EMBEDDING)), tensors.get(module_name(LM_HEAD))
    if not config.tie_word_embeddings or head is None or embedding is None:
        return config, ()
    if _same_bytes(embedding, head):
        return config, ("lm_head repeats the tied embedding byte for byte, and is left out",)
    note = "the config ties lm_head to the embedding, but the checkpoint's two differ: lm_head is kept"
    return replace(config, tie_word_embeddings=False), (note,)


def _same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    first = _stored_weight(a, EMBEDDING)
    second = _stored_weight(b, LM_HEAD)
    for start in range(0, a.shape[0], COMPARED_ROWS):
        rows = slice(start, start + COMPARED_ROWS)
        if first.read_raw(rows).tobytes() != second.read_raw(rows).tobytes():
            return False
    return True


def _expected_only(tensors: Mapping[str, StoredTensor], config: Qwen3Config, folder: Path) -> dict[str, Weight]:
    """The weights of the config's model, all of them and no others."""
    weights: dict[str, Weight] = {}
    for role, shape in expected_weights(config).items():
        name = module_name(role)
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{folder}: {name}.weight is in none of its files; is the download complete?")
        if tensor.shape != shape:
            raise CheckpointError(_shape_message(tensor, shape))
        weights[name] = _stored_weight(tensor, role)
    ignored = {module_name(LM_HEAD)} if config.tie_word_embeddings else set()
    foreign = sorted(tensors.keys() - weights.keys() - ignored)
    if foreign:
        raise UnsupportedModelError(
            f"{folder}: {foreign[0]} ({len(foreign)} such tensors) has no place in a {config.model_type} model of "
            f"{config.num_hidden_layers} layers; is config.json the checkpoint's own?"
        )
    return weights


def _stored_weight(tensor: StoredTensor, role: Role) -> StoredWeight:
    if tensor.dtype not in FLOAT_DTYPES:
        raise UnsupportedModelError(
            f"{tensor.path.name}: {tensor.name} is stored as {tensor.dtype}; BF16, F16 and F32 are read, so export "
            "from the original checkpoint"
        )
    weight = StoredWeight(role=role, shape=tensor.shape, format=tensor.dtype, path=tensor.path, offset=tensor.offset)
    if weight.row_bytes * tensor.shape[0] != tensor.num_bytes:
        raise CheckpointError(
            f"{tensor.path.name}: {tensor.name} has {tensor.num_bytes:,} bytes, which do not "
            f"fit its shape {list(tensor.shape)}; download it again"
        )
    return weight


def _shape_message(tensor: StoredTensor, expected: tuple[int, ...]) -> str:
    return (
        f"{tensor.path.name}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for "
        f"{list(expected)}; weights and config are not of the same model"
    )
