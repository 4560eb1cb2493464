"""A kill -9 at any step of replacing a folder or files loses neither the old nor anything foreign.

A script forks a child for every step; an audit hook in the child counts what it is about to do to the file system, and
kills it before step N.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qwen3_export.errors import OutputError
from qwen3_export.files.atomic import check_output_folder, partial_folder
from qwen3_export.files.swap import left_over

HARNESS = """
import json, os, signal, sys
from pathlib import Path
from qwen3_export.files.atomic import partial_files, partial_folder, write_all

EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open", "os.listdir", "shutil.rmtree"}

def killed_at(step, work):
    # True if the work was killed before that step, False if it has fewer steps.
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in EVENTS:
            seen += 1
            if seen > step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    work()
    os._exit(0)

def content(path):
    return {p.relative_to(path).as_posix(): p.read_text() for p in sorted(path.rglob("*")) if p.is_file()}

def each_step(root, prepare, work):
    step = 0
    while True:
        place = root / str(step)
        place.mkdir()
        prepare(place)
        if not killed_at(step, lambda: work(place)):
            break
        yield place
        step += 1
"""

FOLDERS = """
NEW = {"a": "new", "c": "new"}

def prepare(place):
    for name in ("a", "sub/b"):
        (place / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "out" / name).write_text("old")
    (place / "foreign").write_text("mine")

def work(place):
    with partial_folder(place / "out", overwrite=True, is_ours=lambda name: name in ("a", "sub/b", "c")) as folder:
        for name, text in NEW.items():
            (folder / name).write_text(text)

root, found = Path(sys.argv[1]), []
for place in each_step(root, prepare, work):
    found.append({"killed": {p.name: content(p) for p in place.iterdir() if p.is_dir()}})
    found[-1]["is_foreign_there"] = (place / "foreign").read_text() == "mine"
    work(place)
    found[-1]["again"] = [content(place / "out"), sorted(p.name for p in place.iterdir())]
print(json.dumps(found))
"""

FILES = """
NAMES = ("1", "2", "3")

def prepare(place):
    for name in NAMES:
        (place / name).write_text("old")

def work(place):
    files = [(place / name, 3) for name in NAMES]
    with partial_files(files, overwrite=True, is_ours=lambda path: path.read_text() in ("old", "new")) as descriptors:
        for descriptor in descriptors:
            write_all(descriptor, b"new")

root, found = Path(sys.argv[1]), []
for place in each_step(root, prepare, work):
    killed = {name: (place / name).read_text() for name in NAMES if (place / name).exists()}
    work(place)
    found.append({"killed": killed, "again": content(place)})
print(json.dumps(found))
"""

OLD, NEW = {"a": "old", "sub/b": "old"}, {"a": "new", "c": "new"}


def run(script: str, root: Path) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", HARNESS + script, root], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_a_folder(tmp_path: Path) -> None:
    found = run(FOLDERS, tmp_path)
    assert len(found) > 15
    aside = left_over(Path("out")).name
    states = set()
    for step in found:
        folders = step["killed"]
        if "out" in folders:
            assert folders["out"] in (OLD, NEW)
            states.add("old" if folders["out"] == OLD else "new")
        else:
            assert folders[aside] == OLD
            states.add("aside")
        assert step["is_foreign_there"]
        assert step["again"] == [NEW, ["foreign", "out"]]
    assert states == {"old", "aside", "new"}  # the kills came at every stage


def test_several_files_are_never_mixed(tmp_path: Path) -> None:
    found = run(FILES, tmp_path)
    assert len(found) > 10
    for step in found:
        if "1" in step["killed"]:  # without the first, none of them can be opened
            assert len(set(step["killed"].values())) == 1
            assert len(step["killed"]) == 3
        assert step["again"] == dict.fromkeys("123", "new")


@pytest.mark.parametrize("is_empty_there", [False, True])
def test_what_was_moved_aside_comes_back_before_it_is_judged(is_empty_there: bool, tmp_path: Path) -> None:
    path = tmp_path / "out"
    left_over(path).mkdir()
    (left_over(path) / "a").write_text("old")
    if is_empty_there:
        path.mkdir()
    with pytest.raises(OutputError, match="out: exists already and is not empty"):
        check_output_folder(path, is_ours=lambda name: name == "a")
    assert [found.name for found in tmp_path.iterdir()] == ["out"]
    assert (path / "a").read_text() == "old"


def test_foreign_files_in_what_was_moved_aside_stay(tmp_path: Path) -> None:
    path = tmp_path / "out"
    for folder in (path, left_over(path)):
        folder.mkdir()
        (folder / "a").write_text("x")
    (left_over(path) / "thesis").write_text("years")
    told = r"replaced: was left by an interrupted run, and holds thesis, which is no part of an export; move"
    with pytest.raises(OutputError, match=told):
        check_output_folder(path, overwrite=True, is_ours=lambda name: name == "a")
    with pytest.raises(OutputError, match=told), partial_folder(path, overwrite=True, is_ours=lambda n: n == "a"):
        pytest.fail("the block must not be entered")
    assert (left_over(path) / "thesis").read_text() == "years"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out", "out.qwen3-export.replaced"]


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("old")
    original = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    ours = partial_folder(path, overwrite=True, is_ours=lambda name: name == "a")
    with pytest.raises(OutputError, match="Input/output error"), ours as folder:
        (folder / "a").write_text("new")
    assert [found.name for found in tmp_path.iterdir()] == ["out"]
    assert (path / "a").read_text() == "old"
