"""Only folders of runs are removed from where unfinished work is kept."""

from __future__ import annotations

from pathlib import Path

from qwen3_export.files.unfinished import remove_runs

RUN = "gptq-0123456789abcdef"


def test_the_users_files_beside_runs_stay(tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name in (RUN, "awq-0123456789abcdef", "gptq-paper", "gptq-0123456789abcdef-old", "mine"):
        (work / name / "deep").mkdir(parents=True)
        (work / name / "deep" / "file").write_text("x")
    (work / "statistics-0123456789abcdef").symlink_to(work / "mine")
    remove_runs(work, ["gptq"])
    assert not (work / RUN).exists()
    assert (work / "awq-0123456789abcdef").exists()
    remove_runs(work)
    left = ["gptq-0123456789abcdef-old", "gptq-paper", "mine", "statistics-0123456789abcdef"]
    assert sorted(path.name for path in work.iterdir()) == left
    assert (work / "mine" / "deep" / "file").exists()


def test_the_folder_goes_when_nothing_else_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "work" / RUN).mkdir(parents=True)
    remove_runs(tmp_path / "work")
    assert not list(tmp_path.iterdir())
    remove_runs(tmp_path / "work")
