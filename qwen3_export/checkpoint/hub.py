"""Find the checkpoint that ``model`` names: a folder, ``demo``, a hub id, or the short name of a published Qwen3.

Hub ids are looked for in the local Hugging Face cache first, and downloaded only if they are not there. huggingface_hub
does the download: it resumes broken ones, shows progress, and knows tokens and gated models.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import TOKENIZER_FILES
from qwen3_export.checkpoint.weight_files import INDEX_FILE, SINGLE_FILE, read_weight_map
from qwen3_export.errors import ExportError, ModelNotFoundError, OutputError, UnsupportedModelError

__all__ = ["DEMO", "ResolvedModel", "resolve_model"]

DEMO = "demo"
ORGANISATION = "Qwen"
SHORT_NAME = re.compile(r"Qwen3-[\w.-]+", re.IGNORECASE)
WITHOUT_HEAD = re.compile(r"Qwen3-(?:VL-)?(Embedding|Reranker)", re.IGNORECASE)
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
FILES = [
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "adapter_config.json",
    "README.md",
    *TOKENIZER_FILES,
]

FULL = (errno.ENOSPC, errno.EDQUOT)
# What the parts of huggingface_hub that are written in Rust say instead of an error number.
FULL_WORDS = "No space left on device"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A checkpoint on disk: its folder, what to call it, and the hub id and revision it was downloaded by, if any."""

    folder: Path
    name: str
    hub_id: str | None = None
    revision: str | None = None


def resolve_model(spec: str, *, revision: str | None = None, offline: bool = False) -> ResolvedModel:
    """Find the checkpoint that ``spec`` names; download it if that is needed and not forbidden by ``offline``.

    Raises ModelNotFoundError if there is no such model or it cannot be fetched, UnsupportedModelError for hub ids of
    embedding and reranker models, OutputError if the disk is full.
    """
    if spec == DEMO:
        return ResolvedModel(folder=demo_folder(), name=DEMO)
    path = Path(spec).expanduser()
    if _is_folder(path):
        return ResolvedModel(folder=path, name=path.resolve().name)
    if _exists(path):
        raise ModelNotFoundError(f"{spec}: a file; `model` takes the folder that holds config.json")
    if spec.startswith((".", "/", "~")) or spec.count("/") > 1:
        raise ModelNotFoundError(f"{spec}: no such folder; check the path")
    hub_id = _hub_id(spec)
    _refuse_without_head(hub_id)
    folder = _cached(hub_id, revision)
    if folder is None:
        if offline:
            raise ModelNotFoundError(
                f"{hub_id}: not in the local Hugging Face cache, and `offline` forbids a download; "
                "run once without `offline`, or give a folder"
            )
        folder = _download(hub_id, revision)
    return ResolvedModel(folder=folder, name=hub_id.rpartition("/")[2], hub_id=hub_id, revision=revision)


def demo_folder() -> Path:
    """The small trained Qwen3 that ships with the package."""
    return Path(str(resources.files("qwen3_export.data"))) / "demo"


def _is_folder(path: Path) -> bool:
    return _exists(path) and path.is_dir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long for a name, or with characters that no name has
        return False


def _refuse_without_head(hub_id: str) -> None:
    """Refuse what is published for embedding and ranking: its config says Qwen3ForCausalLM as well.

    A folder of that name is opened, and what is stored in it decides (see ``folder.py``).
    """
    kind = WITHOUT_HEAD.search(hub_id)
    if kind:
        raise UnsupportedModelError(
            f"{hub_id}: a Qwen3 {kind.group(1).lower()} model, without a language-model head that generates text; "
            "name a Qwen3 language model"
        )


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
        raise ModelNotFoundError(f"{hub_id}: not a hub id ({error}); check the name") from error
    return folder if _is_complete(folder) else None


def _is_complete(folder: Path) -> bool:
    """Whether a snapshot has all that is needed; an interrupted download leaves one that has not."""
    if not (folder / "config.json").exists() or not (folder / "tokenizer.json").exists():
        return False
    if (folder / SINGLE_FILE).exists():
        return True
    index = folder / INDEX_FILE
    return index.exists() and all((folder / shard).exists() for shard in set(read_weight_map(index).values()))


def _download(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import constants, snapshot_download
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
        raise ModelNotFoundError(f"{hub_id}: the hub has no revision {revision}; check `revision`") from error
    except Exception as error:  # no network, no name server, proxies, full disks: many types from several libraries
        raise _why_not_downloaded(hub_id, error, cache=Path(constants.HF_HUB_CACHE)) from error


def _why_not_downloaded(hub_id: str, error: Exception, *, cache: Path) -> ExportError:
    """What an error of the download means: a full or unwritable disk, or else the network."""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number in FULL or FULL_WORDS in str(cause):
            return OutputError(
                f"{hub_id}: the disk with {cache} is full, so that the download cannot go on; free some space, or set "
                "HF_HOME to a folder on another disk"
            )
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return OutputError(
                f"{hub_id}: cannot be downloaded, because {cache} cannot be written to; check its permissions, or set "
                "HF_HOME to another folder"
            )
    return ModelNotFoundError(
        f"{hub_id}: not in the local Hugging Face cache, and the hub cannot be reached "
        f"({type(error).__name__}); check the network, or give a folder"
    )


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those it was raised from, the last one first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
