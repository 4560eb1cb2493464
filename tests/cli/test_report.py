"""``qwen3-export report``: saved reports as one page, one table, one file for CI."""

from __future__ import annotations

from pathlib import Path

import pytest
from reports import a_failing_report, a_report, a_solved_report

from qwen3_export.parity.report import save_report


@pytest.fixture
def saved(tmp_path: Path) -> list[str]:
    names = ["plain.json", "solved.json", "failing.json"]
    for name, report in zip(names, (a_report(), a_solved_report(), a_failing_report()), strict=True):
        save_report(report, tmp_path / name)
    return names


def test_a_table_by_default(run, saved: list[str]) -> None:
    outcome = run("report", *saved)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert [line.split()[-1] for line in lines] == ["verdict", "pass", "pass", "fail"]


def test_markdown_is_all_of_standard_output(run, saved: list[str], tmp_path: Path) -> None:
    outcome = run("report", *saved, "--markdown", "--html", "all.html", "--junit", "all.xml")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("| target | recipe |")
    assert len(outcome.out.splitlines()) == 5
    assert "Parity of 3 artifacts: 2 pass, 1 fail" in (tmp_path / "all.html").read_text(encoding="utf-8")
    assert (tmp_path / "all.xml").read_text(encoding="utf-8").count("<testsuite ") == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.json"], "none.json: cannot be read"),
        (["plain.json", "other.json"], "other.json: no parity report"),
        (["plain.json", "--html", "nowhere/all.html"], "there is no folder nowhere"),
    ],
)
def test_refuses_in_a_sentence_and_writes_nothing(
    run, saved: list[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "other.json").write_text("{}", encoding="utf-8")
    outcome = run("report", *arguments, "--junit", "all.xml")
    assert outcome.code == 1
    assert words in outcome.err
    assert outcome.out == ""
    assert not (tmp_path / "all.xml").exists()


def test_a_report_never_overwrites_what_it_reads(run, saved: list[str], tmp_path: Path) -> None:
    before = (tmp_path / "plain.json").read_bytes()
    outcome = run("report", *saved, "--html", "plain.json")
    assert outcome.code == 1
    assert "plain.json: is being read" in outcome.err
    assert (tmp_path / "plain.json").read_bytes() == before
