"""Open a Hugging Face checkpoint folder as a Graph: its config and headers are read, its weights are not.

Qwen3 checkpoints come in several forms: one file or many shards, experts in tensors of their own or fused into one, an
``lm_head`` that repeats the embedding it is tied to. All of them give the same graph, so the rest of the toolkit need
not know. The checkpoint must have every tensor of the config's model, in the config's shape, and no other; if it
differs, it is refused with the first difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qwen3_export.checkpoint.safetensors_file import FLOAT_DTYPES, StoredTensor, StoredWeight
from qwen3_export.checkpoint.tensor_names import canonical_names
from qwen3_export.checkpoint.weight_files import read_stored_tensors, refuse_adapters
from qwen3_export.config import Qwen3Config, config_notes, parse_config, stated_quantization
from qwen3_export.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from qwen3_export.files.json_file import read_json
from qwen3_export.files.shown import shown
from qwen3_export.graph import Graph, Kind, Role, Weight, expected_weights, module_name

__all__ = ["open_checkpoint"]

# Buffers that some exporters wrote beside the weights, and that no computation uses.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)

# Tensors with all experts of a layer, and the projections of each expert in them.
FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}

EMBEDDING = Role(Kind.EMBED_TOKENS)
LM_HEAD = Role(Kind.LM_HEAD)
COMPARED_ROWS = 4096

# Parts of the names under which quantized checkpoints store codes and scales (GPTQ, AWQ, FP8, compressed-tensors, bnb).
QUANTIZED_PARTS = frozenset(
    {"qweight", "qzeros", "scales", "weight_scale", "weight_scale_inv", "weight_scale_2", "weight_packed", "absmax",
     "quant_map", "quant_state", "SCB", "weight_zero_point", "input_scale"}
)  # fmt: skip
# How many tensors may be missing for the first of them to be named.
MISSING_LISTED = 100_000


def open_checkpoint(folder: Path, *, name: str | None = None) -> Graph:
    """Open a checkpoint folder (config.json and safetensors files) without reading weights.

    ``name`` is what the user calls the model, by default the folder's name. Raises CheckpointError for damaged or
    incomplete files, UnsupportedModelError for models that are not Qwen3 language models.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: not a folder; `model` takes a checkpoint folder, a hub id or 'demo'")
    refuse_adapters(folder)
    document = read_json(folder / "config.json")
    config = parse_config(document)
    stored = read_stored_tensors(folder, document)
    named = canonical_names(stored.tensors, folder)
    notes = [*config_notes(document), *stored.notes, *named.notes]
    notes += _settle_quantization(named.tensors, document, folder)
    tensors = _split_fused_experts(_unprefixed(named.tensors), config)
    tensors, config, settled = _settle_head(tensors, config)
    weights = MappingProxyType(_expected_only(tensors, config, folder))
    return Graph(name=name or folder.resolve().name, config=config, weights=weights, notes=(*notes, *settled))


def _settle_quantization(tensors: Mapping[str, StoredTensor], document: Mapping[str, Any], folder: Path) -> list[str]:
    """Decide from what is stored whether the checkpoint is quantized; a merge keeps the config of a model that was."""
    method = stated_quantization(document)
    codes = next((name for name in tensors if not QUANTIZED_PARTS.isdisjoint(name.split("."))), None)
    integers = next((name for name, tensor in tensors.items() if tensor.dtype not in FLOAT_DTYPES), None)
    if codes is None and method is None:
        return []
    if codes is None and integers is None:
        dtypes = ", ".join(sorted({tensor.dtype for tensor in tensors.values()}))
        return [
            f"config.json says that the model is quantized ({shown(method)}), and its weights are stored as {dtypes}: "
            "they are taken as they are"
        ]
    found = codes or integers
    assert found is not None
    raise UnsupportedModelError(
        f"{folder}: the checkpoint is already quantized ({shown(method or 'unknown')}; {shown(found)} is stored as "
        f"{tensors[found].dtype}); export from the original bf16 checkpoint instead"
    )


def _unprefixed(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """By module name: without ``.weight``, and without buffers."""
    kept: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        if module in kept:
            raise CheckpointError(f"{tensor.path}: stores {shown(module)} with and without .weight; download it again")
        if not name.endswith(IGNORED_SUFFIXES):
            kept[module] = tensor
    return kept


def _split_fused_experts(tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> dict[str, StoredTensor]:
    """Split fused expert tensors into one tensor per expert and projection, each a contiguous part of the fused one.

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


def _settle_head(
    tensors: Mapping[str, StoredTensor], config: Qwen3Config
) -> tuple[dict[str, StoredTensor], Qwen3Config, tuple[str, ...]]:
    """Whether the output head is tied to the embedding: what is stored decides, and not only the config."""
    embedding, head = tensors.get(module_name(EMBEDDING)), tensors.get(module_name(LM_HEAD))
    kept = dict(tensors)
    if not config.tie_word_embeddings or head is None:
        return kept, config, ()
    if embedding is None:
        kept[module_name(EMBEDDING)] = kept.pop(module_name(LM_HEAD))
        return kept, config, ("lm_head alone is stored, and is the embedding too, to which the config ties it",)
    if _same_bytes(embedding, head):
        return kept, config, ("lm_head repeats the tied embedding byte for byte, and is left out",)
    note = "the config ties lm_head to the embedding, but the checkpoint's two differ: lm_head is kept"
    return kept, replace(config, tie_word_embeddings=False), (note,)


def _same_bytes(a: StoredTensor, b: StoredTensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype) or len(a.shape) != 2:
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
    _check_count(tensors, config, folder)
    weights: dict[str, Weight] = {}
    for role, shape in expected_weights(config).items():
        name = module_name(role)
        tensor = tensors.get(name)
        if tensor is None:
            raise CheckpointError(_missing_message(name, folder))
        if tensor.shape != shape:
            raise CheckpointError(_shape_message(tensor, shape))
        weights[name] = _stored_weight(tensor, role)
    ignored = {module_name(LM_HEAD)} if config.tie_word_embeddings else set()
    foreign = sorted(tensors.keys() - weights.keys() - ignored)
    if foreign:
        raise UnsupportedModelError(
            f"{folder}: {shown(foreign[0])} ({len(foreign)} such tensors) is no part of a {config.model_type} model of "
            f"{config.num_hidden_layers} layers; take the config.json that belongs to these weights"
        )
    return weights


def _check_count(tensors: Mapping[str, StoredTensor], config: Qwen3Config, folder: Path) -> None:
    """Refuse a config of far more weights than are stored, before they are listed."""
    sparse = sum(config.is_sparse_layer(layer) for layer in range(config.num_hidden_layers))
    count = config.num_hidden_layers + 3 * config.num_experts * sparse
    if count > len(tensors) + MISSING_LISTED:
        raise CheckpointError(
            f"{folder}: config.json asks for more than {count:,} tensors, and its files have {len(tensors):,}; weights "
            "and config are not of the same model"
        )


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


def _missing_message(name: str, folder: Path) -> str:
    if name == module_name(LM_HEAD):
        return (
            f"{folder}: config.json says that lm_head is not the embedding, and lm_head.weight is in none of its "
            "files; set tie_word_embeddings to true if it is, or download the checkpoint completely"
        )
    return f"{folder}: {name}.weight is in none of its files; download it completely"


def _shape_message(tensor: StoredTensor, expected: tuple[int, ...]) -> str:
    return (
        f"{tensor.path.name}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for "
        f"{list(expected)}; weights and config are not of the same model"
    )
