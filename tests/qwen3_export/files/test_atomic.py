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
    with pytest.raises(exception), partial_files([(tmp_path / "a", 10), (tmp_path / "b", 10)]):
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
    (tmp_path / "a.partial").write_bytes(b"half of something long")
    write_text(tmp_path / "a", "whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert names(tmp_path) == ["a"]


def test_outputs_that_are_refused(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    os.mkfifo(tmp_path / "pipe")
    refused = {
        tmp_path / "pipe": "not a regular file",
        tmp_path: "a folder",
        tmp_path / "no" / "file": "no folder",
        taken: "--force",
    }
    for path, words in refused.items():
        with pytest.raises(OutputError, match=words):
            check_output(path, force=False)
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(tmp_path / "pipe", force=True)
    check_output(taken, force=True)
    with pytest.raises(OutputError, match="belongs to the checkpoint"):
        check_output(taken, force=True, inputs=[taken])


def test_a_folder_appears_whole_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "out ü"
    with partial_folder(path) as folder:
        (folder / "a").write_text("1")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["a"]
    with partial_folder(path) as folder:
        (folder / "b").write_text("2")
    assert [entry.name for entry in path.iterdir()] == ["b"]
    with pytest.raises(KeyboardInterrupt), partial_folder(path) as folder:
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
    left = tmp_path / "out.partial"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "old").write_text("x")
    with partial_folder(tmp_path / "out") as folder:
        assert list(folder.iterdir()) == []


def test_folders_that_are_refused(tmp_path: Path) -> None:
    def check(path: Path, *, force: bool = False, inputs: tuple[Path, ...] = ()) -> None:
        check_output_folder(path, force=force, is_ours=lambda name: name == "ours", inputs=inputs)

    check(tmp_path / "new")
    folder = tmp_path / "there"
    folder.mkdir()
    check(folder)
    (folder / "ours").write_text("x")
    with pytest.raises(OutputError, match="--force replaces it"):
        check(folder)
    check(folder, force=True)
    with pytest.raises(OutputError, match="holds the checkpoint"):
        check(folder, force=True, inputs=(folder / "ours",))
    (folder / "theirs").write_text("x")
    with pytest.raises(OutputError, match="holds theirs, which is no part of an export"):
        check(folder, force=True)
    with pytest.raises(OutputError, match="a file"):
        check(folder / "ours")
    with pytest.raises(OutputError, match="there is no folder"):
        check(tmp_path / "no" / "such")
