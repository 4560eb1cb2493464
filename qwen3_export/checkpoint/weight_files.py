"""Which files of a checkpoint folder hold its weights, and what their headers say.

A folder may hold more than one set of weights: a fine-tune that was saved over a sharded base, an adapter beside the
model, a pickled copy. The set that transformers would load is read: the one that ``transformers_weights`` of the config
names, else ``model.safetensors``, else the shards of the index. What is left out is said. An adapter is refused,
because transformers would apply it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_export.checkpoint.safetensors_file import StoredTensor, read_header
from qwen3_export.errors import CheckpointError, UnsupportedModelError
from qwen3_export.files.inside import inside
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.files.shown import shown

__all__ = ["INDEX_FILE", "SINGLE_FILE", "StoredTensors", "read_stored_tensors", "read_weight_map", "refuse_adapters"]

INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
SHARD = re.compile(r".*-\d+-of-\d+\.safetensors")

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = (ADAPTER_CONFIG, "adapter_model.safetensors", "adapter_model.bin", "adapters.safetensors")
LISTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensors:
    """The tensors of a checkpoint by their stored names, and what the user should know of the choice of files."""

    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...] = ()


def read_stored_tensors(folder: Path, config: Mapping[str, Any]) -> StoredTensors:
    """Read the headers of the files that transformers would load; ``config`` is the document of ``config.json``.

    Raises CheckpointError if there are none, or if they are damaged or incomplete.
    """
    chosen = _chosen(folder, config)
    is_sharded = chosen.name.endswith(INDEX_SUFFIX)
    tensors = _read_sharded(folder, chosen) if is_sharded else read_header(chosen)
    return StoredTensors(tensors=tensors, notes=tuple(_unread(folder, chosen, tensors)))


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


def refuse_adapters(folder: Path) -> None:
    """Refuse a folder with an adapter (LoRA and the like), be it alone or beside a model."""
    found = [name for name in ADAPTER_FILES if (folder / name).exists()]
    if not found:
        return
    kind, base = _adapter(folder)
    files = " and ".join(found)
    if any((folder / name).exists() for name in (SINGLE_FILE, INDEX_FILE)):
        raise UnsupportedModelError(
            f"{folder}: {kind} ({files}) lies beside the model's weights, which are without it; merge it into "
            "them (peft: model.merge_and_unload(), then save_pretrained) and export that folder, or move the "
            "adapter's files elsewhere to export the model alone"
        )
    raise UnsupportedModelError(
        f"{folder}: {kind} ({files}), not a model; merge it into its base{base} first "
        "(peft: model.merge_and_unload(), then save_pretrained) and export that folder"
    )


def _adapter(folder: Path) -> tuple[str, str]:
    """What kind of adapter it is, and the name of its base for a message, as far as they are stated."""
    try:
        document = read_json(folder / ADAPTER_CONFIG)
    except CheckpointError:
        return "an adapter", ""
    kind, base = document.get("peft_type"), document.get("base_model_name_or_path")
    is_lora = kind == "LORA" or not isinstance(kind, str)
    named = f" {shown(base)}" if isinstance(base, str) and base else ""
    return "a LoRA adapter" if is_lora else f"an adapter of kind {shown(kind)}", named


def _chosen(folder: Path, config: Mapping[str, Any]) -> Path:
    """The file to begin with: one of weights, or an index."""
    stated = config.get("transformers_weights")
    if stated is not None:
        path = inside(folder, stated, named_by=folder / "config.json", follow_links=True)
        if not path.name.endswith((".safetensors", INDEX_SUFFIX)):
            raise CheckpointError(f"{folder}: transformers_weights is {shown(stated)}; only safetensors are read")
        if not path.exists():
            raise CheckpointError(f"{folder}: config.json names {shown(stated)}, which is not there; download it")
        return path
    for name in (SINGLE_FILE, INDEX_FILE):
        if (folder / name).exists():
            return folder / name
    raise CheckpointError(_why_none(folder))


def _why_none(folder: Path) -> str:
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    shards = [name for name in others if SHARD.fullmatch(name)]
    if shards:
        return f"{folder}: has shards ({_listed(shards)}) and no {INDEX_FILE}, which says what is in them; download it"
    if others:
        return f"{folder}: has {_listed(others)} and no {SINGLE_FILE}; if that is the model, rename it to {SINGLE_FILE}"
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")):
        return f"{folder}: holds pickled weights; only safetensors are read, convert it first"
    return f"{folder}: has neither {SINGLE_FILE} nor {INDEX_FILE}; download it completely"


def _read_sharded(folder: Path, index: Path) -> dict[str, StoredTensor]:
    """All tensors of the shards, also those that the index does not list, as transformers takes them."""
    weight_map = read_weight_map(index)
    shards = {}
    for shard in sorted(set(weight_map.values())):
        path = folder / shard
        if not path.exists():
            raise CheckpointError(f"{index}: names {shown(shard)}, which is not in the folder; download it")
        shards[shard] = read_header(path)
    tensors = {name: tensor for header in shards.values() for name, tensor in header.items()}
    for name, shard in weight_map.items():
        if name not in shards[shard]:
            raise CheckpointError(
                f"{index}: says that {shown(name)} is in {shown(shard)}, and it is not; download both again"
            )
        tensors[name] = shards[shard][name]
    return tensors


def _unread(folder: Path, chosen: Path, tensors: Mapping[str, StoredTensor]) -> list[str]:
    """A note if the folder holds other weights than those that are read."""
    read = {chosen, *(tensor.path for tensor in tensors.values())}
    others = [*folder.glob("*.safetensors"), *folder.glob(f"*{INDEX_SUFFIX}"), *folder.glob("pytorch_model*.bin")]
    unread = sorted(path.name for path in others if path not in read)
    if not unread:
        return []
    return [f"the weights are those of {chosen.name}, as in transformers; not read: {_listed(unread)} beside it"]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(shown, names[:LISTED])) + more
