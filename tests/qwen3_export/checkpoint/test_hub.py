"""--model: folders, demo, hub ids and short names, with a local cache and without a network."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from models import DEMO, write_model
from safetensors.torch import load_file, save_file

from qwen3_export.checkpoint.hub import resolve_model
from qwen3_export.checkpoint.model import load
from qwen3_export.cli.interrupted import Interrupted
from qwen3_export.errors import CheckpointError, ModelNotFoundError, OutputError, UnsupportedModelError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds Qwen/Qwen3-Tiny, laid out as huggingface_hub does."""
    root = tmp_path / "hub"
    repo = root / "models--Qwen--Qwen3-Tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    shutil.copytree(DEMO, repo / "snapshots" / COMMIT)

    original = huggingface_hub.snapshot_download

    def cached(repo_id: str, **options: object) -> str:
        return str(original(repo_id, **{"cache_dir": root, **options}))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    return repo / "snapshots" / COMMIT


def no_network(*_: object, **__: object) -> None:
    raise AssertionError("the network was asked")


def test_demo_ships_with_the_package() -> None:
    model = load("demo")
    assert model.name == "demo"
    assert model.graph.num_parameters == 8_000_256
    assert model.card["license"] == "apache-2.0"


def test_a_folder_is_itself(tmp_path: Path) -> None:
    folder = tmp_path / "mein Modell ü"
    folder.mkdir()
    assert resolve_model(str(folder)).folder == folder
    assert resolve_model(str(folder)).name == "mein Modell ü"


@pytest.mark.parametrize("spec", ["Qwen/Qwen3-Tiny", "Qwen3-Tiny"])
def test_the_cache_is_enough(spec: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_export.checkpoint.hub._download", no_network)
    resolved = resolve_model(spec)
    assert resolved.folder == cache
    assert resolved.name == "Qwen3-Tiny"
    assert resolved.hub_id == "Qwen/Qwen3-Tiny"
    assert load(spec).source == "Qwen/Qwen3-Tiny"


def test_offline_never_asks_the_network(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen3_export.checkpoint.hub._download", no_network)
    with pytest.raises(ModelNotFoundError, match="`offline` forbids"):
        resolve_model("Qwen3-Absent", offline=True)


def test_an_interrupted_download_is_taken_up_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "model.safetensors").unlink()
    asked = []
    monkeypatch.setattr("qwen3_export.checkpoint.hub._download", lambda hub_id, _: asked.append(hub_id) or cache)
    resolve_model("Qwen3-Tiny")
    assert asked == ["Qwen/Qwen3-Tiny"]


def test_no_network_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    monkeypatch.setattr("qwen3_export.checkpoint.hub._cached", lambda *_: None)
    with pytest.raises(ModelNotFoundError, match="cannot be reached") as refusal:
        resolve_model("Qwen/Qwen3-0.6B")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("/no/where", "no such folder"),
        ("./nowhere", "no such folder"),
        ("llama", "neither a folder"),
        ("a b", "neither"),
    ],
)
def test_what_names_nothing(spec: str, words: str) -> None:
    with pytest.raises(ModelNotFoundError, match=words):
        resolve_model(spec)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelNotFoundError, match="takes the folder"):
        resolve_model(str(file))


@pytest.mark.parametrize("spec", ["Qwen/Qwen3-Embedding-0.6B", "Qwen3-Reranker-4B", "mine/qwen3-embedding-tuned"])
def test_models_without_a_head_are_refused_by_name(spec: str) -> None:
    with pytest.raises(UnsupportedModelError, match="head"):
        resolve_model(spec)


@pytest.mark.parametrize("name", ["Qwen3-Embedding-0.6B", "Qwen3-Reranker-4B"])
def test_a_folder_is_judged_by_what_it_holds_and_not_by_its_name(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / name / "language model", "tied")
    assert load(folder).name == "language model"
    folder = write_model(tmp_path / "models" / name, "tied")
    assert load(folder).name == name


def test_an_embedding_model_is_refused_whatever_its_folder_is_called(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "mine", "tied")
    tensors = load_file(folder / "model.safetensors")
    save_file({name.removeprefix("model."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(UnsupportedModelError, match="an embedding model"):
        load(folder)


# Downloads that fail


def raising(error: BaseException) -> Callable[..., str]:
    def download(*_: object, local_files_only: bool = False, **__: object) -> str:
        if local_files_only:
            raise FileNotFoundError
        raise error

    return download


def chained(inner: BaseException) -> RuntimeError:
    error = RuntimeError("Data processing error")
    error.__cause__ = inner
    return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/cache/blobs/x.incomplete"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        chained(OSError(errno.ENOSPC, "No space left on device")),
        RuntimeError("Data processing error: IO Error: No space left on device (os error 28)"),
    ],
    ids=["disk", "quota", "chained", "in words"],
)
def test_a_full_disk_is_not_told_as_a_network_fault(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(error))
    with pytest.raises(OutputError, match=r"the disk with .* is full") as refusal:
        resolve_model("Qwen/Qwen3-0.6B")
    assert huggingface_hub.constants.HF_HUB_CACHE in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_cache_that_cannot_be_written_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(PermissionError(errno.EACCES, "denied", "/x")))
    with pytest.raises(OutputError, match="cannot be written to"):
        resolve_model("Qwen/Qwen3-0.6B")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, Interrupted])
def test_an_interruption_passes_through(interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", raising(interruption()))
    with pytest.raises(interruption):
        resolve_model("Qwen/Qwen3-0.6B")


def test_a_damaged_index_in_the_cache_is_a_sentence(cache: Path) -> None:
    (cache / "model.safetensors").unlink()
    for document in ('{"weight_map": []}', '{"weight_map": {"x": [1]}}', "[" * 5000):
        (cache / "model.safetensors.index.json").write_text(document)
        with pytest.raises(CheckpointError):
            resolve_model("Qwen3-Tiny")


def test_names_that_no_file_can_have() -> None:
    for spec in ("Qwen3-" + "x" * 5000, "a\0b"):
        with pytest.raises(ModelNotFoundError):
            resolve_model(spec, offline=True)


def test_a_whole_file_needs_no_shards_of_an_index(cache: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (cache / "model.safetensors.index.json").write_text(json.dumps(index))
    assert resolve_model("Qwen/Qwen3-Tiny", offline=True).folder == cache
