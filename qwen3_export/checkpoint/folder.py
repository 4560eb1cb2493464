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

from qwen3_export.checkpoint.safetensors_file import FLOAT_DTYPES, StoredTensor, StoredWeight, read_header
from qwen3_export.config import Qwen3Config, parse_config
from qwen3_export.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from qwen3_export.files.inside import inside
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.files.shown import shown
from qwen3_export.graph import Graph, Kind, Role, Weight, expected_weights, module_name

__all__ = ["INDEX_FILE", "SINGLE_FILE", "open_checkpoint", "read_weight_map"]

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"

# Buffers that some exporters wrote beside the weights, and that no computation uses.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq",)

# Tensors with all experts of a layer, and the projections of each expert in them.
FUSED_EXPERTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}

EMBEDDING = Role(Kind.EMBED_TOKENS)
LM_HEAD = Role(Kind.LM_HEAD)
COMPARED_ROWS = 4096
# How many tensors may be missing for the first of them to be named.
MISSING_LISTED = 100_000


def open_checkpoint(folder: Path, *, name: str | None = None) -> Graph:
    """Open a checkpoint folder (config.json and safetensors files) without reading weights.

    ``name`` is what the user calls the model, by default the folder's name. Raises CheckpointError for damaged or
    incomplete files, UnsupportedModelError for models that are not Qwen3 language models.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"{folder}: not a folder; `model` takes a checkpoint folder, a hub id or 'demo'")
    _refuse_adapters(folder)
    config = parse_config(read_json(folder / "config.json"))
    headers = _read_headers(folder)
    _refuse_without_head(headers, folder)
    tensors = _unprefixed(headers)
    stored = _split_fused_experts(tensors, config)
    config, notes = _settle_head(stored, config)
    weights = _expected_only(stored, config, folder)
    return Graph(name=name or folder.resolve().name, config=config, weights=MappingProxyType(weights), notes=notes)


def read_weight_map(index: Path) -> dict[str, str]:
    """The shard of each tensor, from ``model.safetensors.index.json``.

    Raises CheckpointError if the index is damaged, or names a file outside its folder.
    """
    weight_map = Fields(read_json(index), index).object("weight_map")
    if weight_map is None:
        raise CheckpointError(f"{index}: has no weight_map; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str):
            raise CheckpointError(f"{index}: says that {shown(name)} is in {shown(shard)}; download it again")
    for shard in set(weight_map.values()):
        inside(index.parent, shard, named_by=index, follow_links=True)
    return weight_map


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
    raise CheckpointError(f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}; download it completely")


def _read_sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = read_weight_map(index)
    shards = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not path.exists():
            raise CheckpointError(f"{index}: names {shown(shard)}, which is not in the folder; download it")
        shards[shard] = read_header(path)
    tensors = {}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index}: says that {shown(name)} is in {shown(shard)}, and it is not; download both again"
            )
        tensors[name] = shards[shard][name]
    return tensors


def _refuse_without_head(tensors: Mapping[str, StoredTensor], folder: Path) -> None:
    """Refuse embedding models, which call themselves Qwen3ForCausalLM too: they store the bare stack of layers."""
    if "embed_tokens.weight" in tensors and not any(name.startswith(("model.", "lm_head.")) for name in tensors):
        raise UnsupportedModelError(
            f"{folder}: an embedding model (its tensors have no 'model.' before their names, and there is no lm_head), "
            "which generates no text; name a Qwen3 language model"
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


def _settle_head(tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> tuple[Qwen3Config, tuple[str, ...]]:
    """Whether the output head is tied to the embedding: what is stored decides, and not only the config."""
    embedding, head = tensors.get(module_name(EMBEDDING)), tensors.get(module_name(LM_HEAD))
    if not config.tie_word_embeddings or head is None or embedding is None:
        return config, ()
    if _same_bytes(embedding, head):
        return config, ("lm_head repeats the tied embedding byte for byte, and is left out",)
    note = "the config ties lm_head to the embedding, but the checkpoint's two differ: lm_head is kept"
    return replace(config, tie_word_embeddings=False), (note,)


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
            raise CheckpointError(f"{folder}: {name}.weight is in none of its files; download it completely")
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


def _shape_message(tensor: StoredTensor, expected: tuple[int, ...]) -> str:
    return (
        f"{tensor.path.name}: {tensor.name} has shape {list(tensor.shape)}, config.json asks for "
        f"{list(expected)}; weights and config are not of the same model"
    )
