"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from qwen3_export.errors import OutputError
from qwen3_export.files.atomic import (
    check_output,
    check_output_folder,
    partial_file,
    partial_files,
    partial_folder,
    write_text,
)


def is_old(path: Path) -> bool:
    return path.read_bytes() == b"old"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_whole_and_with_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "a ü.bin"
    with partial_file(path, num_bytes=4) as descriptor:
        assert not path.exists()
        os.pwrite(descriptor, b"abcd", 0)
    assert path.read_bytes() == b"abcd"
    assert names(tmp_path) == [path.name]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_writing_ends_early(exception: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "b").write_bytes(b"old")
    files = [(tmp_path / "a", 10), (tmp_path / "b", 10)]
    with pytest.raises(exception), partial_files(files, overwrite=True, is_ours=is_old):
        raise exception
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b").read_bytes() == b"old"


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"), partial_file(tmp_path / "a", num_bytes=1 << 60):
        pass
    assert names(tmp_path) == []


def test_a_disk_that_fills_meanwhile(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="disk is full"), partial_file(tmp_path / "a"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    with partial_file(tmp_path / "a") as descriptor:
        os.write(descriptor, b"first")
        with pytest.raises(OutputError, match="another run"), partial_file(tmp_path / "a"):
            pass
    assert (tmp_path / "a").read_bytes() == b"first"


def test_what_a_power_cut_left_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.qwen3-export.partial").write_bytes(b"half of something long")
    write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert names(tmp_path) == ["a"]


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_bytes(b"old")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("taken")
    (tmp_path / "dangling").symlink_to("nowhere")
    refused = {
        tmp_path / "pipe": "not a regular file",
        tmp_path: "a folder",
        tmp_path / "no" / "file": "no folder",
        tmp_path / "link": "a symbolic link",
        tmp_path / "dangling": "a symbolic link",
    }
    for path, words in refused.items():
        for overwrite in (False, True):
            with pytest.raises(OutputError, match=words):
                check_output(path, overwrite=overwrite, is_ours=is_old)
    with pytest.raises(OutputError, match="exists already"):
        check_output(taken, is_ours=is_old)
    check_output(taken, overwrite=True, is_ours=is_old)
    with pytest.raises(OutputError, match="is being read"):
        check_output(taken, overwrite=True, is_ours=is_old, inputs=[tmp_path / "gone", taken])


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_ours_survives(overwrite: bool, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(OutputError):
        check_output(notes, overwrite=overwrite, is_ours=is_old)
    with pytest.raises(OutputError), partial_file(notes, overwrite=overwrite, is_ours=is_old):
        pytest.fail("the block must not be entered")
    with pytest.raises(OutputError):
        write_text(notes, "theirs", overwrite=overwrite, is_ours=is_old)
    with pytest.raises(OutputError):
        write_text(notes, "theirs", overwrite=overwrite)  # nothing is ours unless somebody says so
    assert notes.read_text() == "mine"
    assert names(tmp_path) == ["notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_that_appears_meanwhile_survives(overwrite: bool, tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    with pytest.raises(OutputError), partial_file(notes, overwrite=overwrite, is_ours=is_old):
        notes.write_text("mine")
    assert notes.read_text() == "mine"
    assert names(tmp_path) == ["notes.txt"]


def test_old_files_of_ours_and_empty_ones_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    (tmp_path / "b").touch()
    for name in ("a", "b"):
        write_text(tmp_path / name, "new", overwrite=True, is_ours=is_old)
        assert (tmp_path / name).read_text() == "new"


def test_a_run_that_has_just_finished_is_not_written_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another run opens the partial file, and gets the lock only after this one has renamed it."""
    import fcntl

    original, first = fcntl.flock, partial_file(tmp_path / "a")
    os.write(first.__enter__(), b"first")

    def late(descriptor: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", original)
        first.__exit__(None, None, None)
        original(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(OutputError, match="exists already"), partial_file(tmp_path / "a") as descriptor:
        os.write(descriptor, b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out ü"
    with partial_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["a"]
    with partial_folder(path, overwrite=True, is_ours=lambda name: name == "a") as folder:
        (folder / "b").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["b"]
    ours = partial_folder(path, overwrite=True, is_ours=lambda name: name == "b")
    with pytest.raises(KeyboardInterrupt), ours as folder:
        _write_and_stop(folder / "c")
    assert [entry.name for entry in path.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out ü"]


def _write_and_stop(path: Path) -> None:
    path.write_text("3")
    raise KeyboardInterrupt


def test_two_runs_cannot_fill_one_folder(tmp_path: Path) -> None:
    with partial_folder(tmp_path / "out") as folder:
        (folder / "mine").write_text("1")
        with pytest.raises(OutputError, match="another run"), partial_folder(tmp_path / "out"):
            pass
        assert (folder / "mine").exists()


def test_what_a_power_cut_left_is_cleared(tmp_path: Path) -> None:
    left = tmp_path / "out.qwen3-export.partial"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "old").write_text("x")
    (tmp_path / "else").mkdir()
    (left / "link").symlink_to(tmp_path / "else")
    with partial_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []
    assert (tmp_path / "else").is_dir()


def test_folders_that_are_refused(tmp_path: Path) -> None:
    def is_ours(name: str) -> bool:
        return name in ("ours", "sub/ours")

    def check(path: Path, *, overwrite: bool = False, inputs: tuple[Path, ...] = ()) -> None:
        check_output_folder(path, overwrite=overwrite, is_ours=is_ours, inputs=inputs)
        with partial_folder(path, overwrite=overwrite, is_ours=is_ours, inputs=inputs):
            raise StopIteration  # the same check has let it pass: nothing is to be written

    def passes(path: Path, **options: object) -> None:
        with pytest.raises(StopIteration):
            check(path, **options)  # type: ignore[arg-type]

    passes(tmp_path / "new")
    folder = tmp_path / "there"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to("there")
    (folder / "sub" / "ours").write_text("x")
    with pytest.raises(OutputError, match="exists already and is not empty"):
        check(folder)
    passes(folder, overwrite=True)
    with pytest.raises(OutputError, match="which is being read"):
        check(folder, overwrite=True, inputs=(folder / "sub" / "ours",))
    for foreign in (folder / "theirs", folder / "sub" / "theirs"):
        foreign.write_text("x")
        told = f"holds {foreign.relative_to(folder)}, which is no part of an export"
        with pytest.raises(OutputError, match=told):
            check(folder, overwrite=True)
        foreign.unlink()
    (folder / "elsewhere").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="holds elsewhere"):
        check(folder, overwrite=True)
    with pytest.raises(OutputError, match="a file"):
        check(folder / "sub" / "ours")
    with pytest.raises(OutputError, match="a symbolic link"):
        check(tmp_path / "link", overwrite=True)
    passes(tmp_path / "no" / "such")  # folders above it are made


def test_a_checkpoint_of_links_is_kept(tmp_path: Path) -> None:
    """In a Hugging Face cache the files of a snapshot are links to blobs elsewhere."""
    (tmp_path / "blob").write_text("{}")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").symlink_to("../blob")
    with pytest.raises(OutputError, match=r"holds config\.json, which is being read"):
        check_output_folder(snapshot, overwrite=True, is_ours=lambda _: True, inputs=[snapshot / "config.json"])
    write_text(tmp_path / "x", "x")
    with pytest.raises(OutputError, match="is being read"):
        check_output(tmp_path / "blob", overwrite=True, is_ours=lambda _: True, inputs=[snapshot / "config.json"])


def test_a_foreign_file_that_appears_in_a_folder_meanwhile_survives(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("old")
    ours = partial_folder(path, overwrite=True, is_ours=lambda name: name == "a")
    with pytest.raises(OutputError, match="holds thesis"), ours as folder:
        (folder.with_name("out") / "thesis").write_text("years")
    assert names(tmp_path) == ["out"]
    assert names(path) == ["a", "thesis"]
    assert (path / "a").read_text() == "old"


def test_what_systems_write_into_folders_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / ".DS_Store").write_text("x")
    with partial_folder(path, overwrite=True, is_ours=lambda _: False) as folder:
        (folder / "a").write_text("new")
    assert names(path) == ["a"]
