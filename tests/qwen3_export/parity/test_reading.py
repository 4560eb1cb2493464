"""Saved reports, read back: equal to what was saved, and anything else refused in one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from reports import a_failing_report, a_report, a_solved_report, an_unrun_report

from qwen3_export.errors import ExportError
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.reading import read_report
from qwen3_export.parity.report import Report, save_report


@pytest.mark.parametrize("report", [a_report(), a_solved_report(), a_failing_report(), an_unrun_report()])
def test_what_is_saved_reads_back_equal(report: Report, tmp_path: Path) -> None:
    save_report(report, tmp_path / "report.json")
    found = read_report(tmp_path / "report.json")
    assert found == report
    assert found.verdict == report.verdict
    assert found.reasons == report.reasons


def test_what_was_not_finite_is_not_taken_for_unmeasured(tmp_path: Path) -> None:
    report = a_report()
    broken = replace(
        report,
        shipped=replace(report.shipped, mean_kld=math.inf, status="fail"),
        weight_errors=(replace(report.weight_errors[0], relative=math.inf),),
    )
    save_report(broken, tmp_path / "report.json")
    found = read_report(tmp_path / "report.json")
    assert found.shipped.mean_kld == math.inf
    assert found.weight_errors[0].relative == math.inf
    assert found.floor == report.floor
    assert read_report(tmp_path / "report.json").conversion != NOT_RUN


def test_other_versions_are_read(tmp_path: Path) -> None:
    """Fields that are not known are passed over; those that an older version did not write keep their defaults."""
    document = a_report().to_dict() | {"invented": {"later": 1}}
    document["decode"]["invented"] = True
    for name in ("curves", "weight_errors", "bounds", "command", "calibration", "floor"):
        del document[name]
    (tmp_path / "report.json").write_text(json.dumps(document), encoding="utf-8")
    found = read_report(tmp_path / "report.json")
    assert found.conversion == a_report().conversion
    assert (found.curves, found.weight_errors, found.command) == ({}, (), None)


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '{"artifact": "x"}', '{"conversion": 3}', "null"])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ExportError, match=r"other\.json: no parity report"):
        read_report(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.json: cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_report_of_many_layers_stays_small(tmp_path: Path) -> None:
    save_report(replace(a_solved_report(layers=64), positions=1 << 15), tmp_path / "report.json")
    assert (tmp_path / "report.json").stat().st_size < 200_000
