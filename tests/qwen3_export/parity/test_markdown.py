"""The Markdown table: every column, one row a report, and nothing in a cell that would end it."""

from __future__ import annotations

from dataclasses import replace

from reports import a_failing_report, a_report, a_solved_report, an_unrun_report

from qwen3_export.parity.markdown import COLUMNS, to_markdown
from qwen3_export.parity.summary import overview_text


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_row_a_report() -> None:
    lines = to_markdown([a_report(), a_solved_report(), a_failing_report(), an_unrun_report()]).splitlines()
    assert cells(lines[0]) == list(COLUMNS)
    assert set(cells(lines[1])) == {"---"}
    assert cells(lines[2]) == [
        "gguf", "q4_k_m", "rtn", "5.50 MB", "5.19", "1.43e-12", "0.0003", "0.0048", "0.0053", "99.00%", "pass",
    ]  # fmt: skip
    assert cells(lines[3])[2] == "gptq"
    assert cells(lines[4])[5] == "1.06e-06 (out of bounds)"
    assert cells(lines[4])[-1] == "fail"
    assert cells(lines[5])[5:10] == ["–", "–", "0.0048", "–", "–"]
    assert cells(lines[5])[-1] == "not run"


def test_cells_stay_cells() -> None:
    line = to_markdown([replace(a_report(), recipe="a|b\nc")]).splitlines()[2]
    assert "a\\|b c" in line


def test_the_plain_table_names_the_artifacts() -> None:
    lines = overview_text([a_report(), an_unrun_report()]).splitlines()
    assert lines[0].split()[0] == "artifact"
    assert lines[1].startswith("demo-q4_k_m.gguf  gguf")
    assert len({line.index(word) for line, word in zip(lines[1:], ("gguf    q4", "onnx    int4"), strict=True)}) == 1
