"""Stored tensor names as the canonical ones: ``model.layers.0.mlp.up_proj.weight``, ``lm_head.weight``.

Training code wraps models, and a checkpoint that was saved through a wrapper has its name in every tensor's:
``module.`` (DistributedDataParallel, DeepSpeed), ``_orig_mod.`` (torch.compile), ``_fsdp_wrapped_module.``,
``base_model.model.`` (peft after a merge). Such names are unambiguous, so they are read, with a note. What is ambiguous
is refused, with what it is: an adapter that was not merged, a part of a larger model, a model without a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3_export.checkpoint.safetensors_file import StoredTensor
from qwen3_export.errors import CheckpointError, UnsupportedModelError
from qwen3_export.files.shown import shown

__all__ = ["NamedTensors", "canonical_names"]

# Names of wrappers, which may stand before any module.
WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})
# Parts of names that peft gives while its adapters are not merged.
UNMERGED = frozenset(
    {"lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector", "base_layer", "ia3_l",
     "modules_to_save", "original_module"}
)  # fmt: skip
HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedTensors:
    """Tensors by their canonical names, and what the user should know of the stored ones."""

    tensors: Mapping[str, StoredTensor]
    notes: tuple[str, ...] = ()


def canonical_names(stored: Mapping[str, StoredTensor], folder: Path) -> NamedTensors:
    """Give every tensor its canonical name. Raises UnsupportedModelError for what is not a whole language model."""
    names = {name: _unwrapped(name) for name in stored}
    _refuse_unmerged(names, folder)
    stem = _stem(names)
    if stem is not None:
        names = {name: _moved(parts, stem, folder) for name, parts in names.items()}
        if not stem or stem[-1] != "model" or stem == ["base_model", "model"]:
            names = _with_model(names, folder)
    return NamedTensors(tensors=_renamed(stored, names, folder), notes=_notes(names))


def _unwrapped(name: str) -> list[str]:
    return [part for part in name.split(".") if part not in WRAPPERS]


def _refuse_unmerged(names: Mapping[str, list[str]], folder: Path) -> None:
    for name, parts in names.items():
        if not UNMERGED.isdisjoint(parts):
            raise UnsupportedModelError(
                f"{folder}: {shown(name)} belongs to an adapter that is not merged into the weights; merge it (peft: "
                "model.merge_and_unload(), then save_pretrained) and export that folder"
            )


def _stem(names: Mapping[str, list[str]]) -> list[str] | None:
    """What stands before the final norm, ``model`` as a rule; None if there is no such norm, or more than one."""
    found = [parts[:-2] for parts in names.values() if parts[-2:] == ["norm", "weight"]]
    return found[0] if len(found) == 1 else None


def _moved(parts: list[str], stem: list[str], folder: Path) -> list[str]:
    """The name without what stands before ``model``, which all names must share."""
    prefix = stem if stem == ["base_model", "model"] else stem[:-1] if stem and stem[-1] == "model" else stem
    if parts[: len(prefix)] != prefix:
        raise UnsupportedModelError(
            f"{folder}: the names of a language model's tensors begin with {shown('.'.join(prefix))} here, and that of "
            f"{shown('.'.join(parts))} does not: a part of a larger model; save the language model alone"
        )
    return parts[len(prefix) :]


def _with_model(names: Mapping[str, list[str]], folder: Path) -> dict[str, list[str]]:
    """The names of a bare stack of layers with ``model.`` before them.

    Without a head it is taken for an embedding model, because these call themselves Qwen3ForCausalLM too.
    """
    if HEAD.split(".") not in names.values():
        raise UnsupportedModelError(
            f"{folder}: an embedding model (its tensors have no 'model.' before their names, and there is no lm_head), "
            "which generates no text; name a Qwen3 language model"
        )
    return {name: parts if parts[0] == "lm_head" else ["model", *parts] for name, parts in names.items()}


def _renamed(
    stored: Mapping[str, StoredTensor], names: Mapping[str, list[str]], folder: Path
) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    origin: dict[str, str] = {}
    for name, parts in names.items():
        new = ".".join(parts)
        if new in tensors:
            raise CheckpointError(
                f"{folder}: {shown(origin[new])} and {shown(name)} are the same weight; remove one of them"
            )
        tensors[new], origin[new] = stored[name], name
    return tensors


def _notes(names: Mapping[str, list[str]]) -> tuple[str, ...]:
    changed = [name for name, parts in names.items() if name != ".".join(parts)]
    if not changed:
        return ()
    first = changed[0]
    return (f"{len(changed)} tensors are stored under other names: {first} is read as {'.'.join(names[first])}",)
