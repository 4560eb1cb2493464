"""Names from files stay inside their folder, and a Hugging Face cache goes on working."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwen3_export.errors import CheckpointError
from qwen3_export.files.inside import inside


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("mine")
    return tmp_path / "folder"


def named(folder: Path, name: object, *, follow_links: bool = False) -> Path:
    return inside(folder, name, named_by=folder / "index.json", follow_links=follow_links)


@pytest.mark.parametrize("name", ["a", "sub/a", "./a", "a..b", "..a", "a b ü", "sub/missing/a", "c"])
def test_relative_names(name: str, folder: Path) -> None:
    for follow_links in (False, True):
        assert named(folder, name, follow_links=follow_links) == folder / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../secret", "leads out"),
        ("sub/../../secret", "leads out"),
        ("sub/../a", "leads out"),
        ("/etc/passwd", "absolute"),
        ("//etc/passwd", "absolute"),
        ("C:/secret", "absolute"),
        ("c:secret", "absolute"),
        ("..\\secret", "characters"),
        ("a\0b", "characters"),
        ("\ud800", "characters"),
        ("", "empty"),
        (".", "empty"),
        ("x" * 300, "too long"),
        ("ü" * 200, "too long"),
        ("x/" * 1000, "too long"),
        (None, "no name"),
        (3, "no name"),
        (["a"], "no name"),
        ({"a": 1}, "no name"),
        (b"a", "no name"),
    ],
)
def test_other_names_are_one_sentence(name: object, reason: str, folder: Path) -> None:
    for follow_links in (False, True):
        with pytest.raises(CheckpointError, match=reason) as refusal:
            named(folder, name, follow_links=follow_links)
        assert str(refusal.value).startswith(f"{folder / 'index.json'}: names the file ")
        assert str(refusal.value).isprintable()


def test_links_within_the_folder(folder: Path) -> None:
    (folder / "link").symlink_to("sub/a")
    assert named(folder, "link") == folder / "link"
    (folder / "itself").symlink_to(folder)
    assert named(folder, "itself/sub/a") == folder / "itself/sub/a"


def test_links_out_of_the_folder(folder: Path) -> None:
    (folder / "link").symlink_to("../secret")
    (folder / "root").symlink_to("/")
    with pytest.raises(CheckpointError, match="through a symbolic link"):
        named(folder, "link")
    # A checkpoint's own file may be a link, as the user made it; a folder on the way may not.
    assert named(folder, "link", follow_links=True).read_text() == "mine"
    for follow_links in (False, True):
        with pytest.raises(CheckpointError, match="through a symbolic link"):
            named(folder, "root/etc/passwd", follow_links=follow_links)


def test_links_in_a_circle(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    for name in ("a", "a/c"):
        with pytest.raises(CheckpointError, match="through a symbolic link"):
            named(folder, name)


def test_a_hugging_face_cache(tmp_path: Path) -> None:
    repository, other = tmp_path / "models--org--name", tmp_path / "models--org--other"
    for repo in (repository, other):
        (repo / "blobs").mkdir(parents=True)
        (repo / "snapshots" / "abc" / "onnx").mkdir(parents=True)
        (repo / "blobs" / "digest").write_text("weights")
    snapshot = repository / "snapshots" / "abc"
    (snapshot / "onnx" / "model.onnx_data").symlink_to("../../../blobs/digest")
    (snapshot / "stolen").symlink_to(other / "blobs" / "digest")
    for start, name in ((snapshot, "onnx/model.onnx_data"), (snapshot / "onnx", "model.onnx_data")):
        for follow_links in (False, True):
            assert named(start, name, follow_links=follow_links).read_text() == "weights"
    with pytest.raises(CheckpointError, match="through a symbolic link"):
        named(snapshot, "stolen")


def test_a_folder_that_only_looks_like_a_cache(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name" / "mine"
    folder.mkdir(parents=True)
    (tmp_path / "models--org--name" / "secret").write_text("mine")
    (folder / "link").symlink_to("../secret")
    with pytest.raises(CheckpointError, match="through a symbolic link"):
        named(folder, "link")


def test_a_folder_that_is_itself_named_by_a_link(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "alias").symlink_to(folder)
    (folder / "a").write_text("x")
    assert named(tmp_path / "alias", "a").read_text() == "x"
    monkeypatch.chdir(tmp_path)
    assert named(Path("alias"), "a") == Path("alias/a")
