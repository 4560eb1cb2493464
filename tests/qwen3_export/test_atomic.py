"""Output files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from qwen3_export.atomic import check_output, partial_file, partial_files, write_text
from qwen3_export.errors import OutputError


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
