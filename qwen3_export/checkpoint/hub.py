"""What ``--model`` may name: a folder, ``demo``, a hub id, or the short name of a published Qwen3.

Hub ids are looked for in the local Hugging Face cache first and downloaded only if they are not there;
huggingface_hub resumes broken downloads, shows progress and knows tokens and gated models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import TOKENIZER_FILES
from qwen3_export.errors import ModelNotFoundError, UnsupportedModelError

__all__ = ["DEMO", "ResolvedModel", "resolve_model"]

DEMO = "demo"
ORGANISATION = "Qwen"
SHORT_NAME = re.compile(r"Qwen3-[\w.-]+", re.IGNORECASE)
WITHOUT_HEAD = re.compile(r"Qwen3-(?:VL-)?(Embedding|Reranker)", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = ["config.json", "model*.safetensors", "model.safetensors.index.json", "README.md", *TOKENIZER_FILES]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A checkpoint on disk: its folder, what to call it, and the hub id that it came from, if any."""

    folder: Path
    name: str
    hub_id: str | None = None
    revision: str | None = None


def resolve_model(spec: str, *, revision: str | None = None, offline: bool = False) -> ResolvedModel:
    """Find the checkpoint that ``spec`` names, downloading it if that is needed and allowed.

    Raises ModelNotFoundError with one sentence that says what was looked for and what to do.
    """
    _refuse_without_head(spec)
    if spec == DEMO:
        return ResolvedModel(folder=demo_folder(), name=DEMO)
    path = Path(spec).expanduser()
    if path.is_dir():
        return ResolvedModel(folder=path, name=path.resolve().name)
    if path.exists():
        raise ModelNotFoundError(f"{spec}: a file; --model takes the folder that holds config.json")
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ModelNotFoundError(f"{spec}: no such folder; check the path")
    hub_id = _hub_id(spec)
    folder = _cached(hub_id, revision)
    if folder is None:
        if offline:
            raise ModelNotFoundError(
                f"{hub_id}: not in the local Hugging Face cache, and --offline forbids a download; "
                "run once without --offline, or give a folder"
            )
        folder = _download(hub_id, revision)
    return ResolvedModel(folder=folder, name=hub_id.rpartition("/")[2], hub_id=hub_id, revision=revision)


def _refuse_without_head(spec: str) -> None:
    """Embedding and reranker models call themselves Qwen3ForCausalLM in config.json; only their name tells."""
    kind = WITHOUT_HEAD.search(spec)
    if kind:
        raise UnsupportedModelError(
            f"{spec}: a Qwen3 {kind.group(1).lower()} model has no language-model head that generates text; "
            "the language models are supported"
        )


def demo_folder() -> Path:
    """The small trained Qwen3 that ships with the package."""
    return Path(str(resources.files("qwen3_export.data"))) / "demo"


def _hub_id(spec: str) -> str:
    if HUB_ID.fullmatch(spec):
        return spec
    if SHORT_NAME.fullmatch(spec):
        return f"{ORGANISATION}/{spec}"
    raise ModelNotFoundError(
        f"{spec}: neither a folder nor a model name; give a folder, a hub id such as Qwen/Qwen3-1.7B, "
        "a short name such as Qwen3-1.7B, or demo"
    )


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """The snapshot in the local cache, if it is there with all its shards."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES, local_files_only=True))
    except (LocalEntryNotFoundError, HfHubHTTPError, FileNotFoundError):
        return None
    except HFValidationError as error:
        raise ModelNotFoundError(f"{hub_id}: not a hub id ({error})") from error
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has all that is needed; an interrupted download leaves one that has not."""
    from qwen3_export.checkpoint.folder import INDEX_FILE, SINGLE_FILE, read_json

    if not (folder / "config.json").exists() or not (folder / "tokenizer.json").exists():
        return False
    index = folder / INDEX_FILE
    if not index.exists():
        return (folder / SINGLE_FILE).exists()
    return all((folder / shard).exists() for shard in set(read_json(index).get("weight_map", {}).values()))


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=FILES))
    except GatedRepoError as error:
        raise ModelNotFoundError(
            f"{hub_id}: gated; accept its terms on the hub and log in with 'hf auth login'"
        ) from error
    except RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"{hub_id}: the hub has no such model, or it is private; check the name, or 'hf auth login'"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{hub_id}: the hub has no revision {revision}; check --revision") from error
    except KeyboardInterrupt:
        raise
    except Exception as error:  # offline, DNS, proxies: many types from several libraries
        raise ModelNotFoundError(
            f"{hub_id}: not in the local Hugging Face cache, and the hub cannot be reached "
            f"({type(error).__name__}); check the network, or give a folder"
        ) from error
