"""Saved reports, read back: equal to what was saved, and anything else refused in one sentence."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
from fuzzing import damaged_json, limited
from reports import a_failing_report, a_report, a_solved_report, an_unrun_report

from qwen3_export.errors import ExportError
from qwen3_export.parity.html import save_overview
from qwen3_export.parity.junit import save_junit
from qwen3_export.parity.markdown import to_markdown
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.reading import read_report
from qwen3_export.parity.report import Report, save_report
from qwen3_export.parity.summary import overview_text


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


def test_damaged_reports_are_refused_or_shown(tmp_path: Path) -> None:
    """Whatever is read back can be shown in every form."""
    document, chance, refused = a_solved_report().to_dict(), random.Random(0), []
    path, page = tmp_path / "report.json", tmp_path / "page"
    with limited():
        for number in range(150):
            path.write_bytes(damaged_json(document, chance))
            try:
                report = read_report(path)
                page.unlink(missing_ok=True)
                save_overview([report], page)
                page.unlink()
                save_junit([report], page)
                assert to_markdown([report])
                assert overview_text([report])
            except ExportError as error:
                refused.append(str(error))
            except BaseException as error:
                pytest.fail(f"{number}: {type(error).__name__}: {error}")
    assert 30 < len(refused) < 150
    assert not any("\n" in sentence for sentence in refused)


@pytest.mark.parametrize(("name", "value"), [("size_bytes", "1"), ("seconds", []), ("metadata", "one"), ("recipe", 3)])
def test_a_field_of_another_type_is_named(name: str, value: object, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(a_report().to_dict() | {name: value}), encoding="utf-8")
    with pytest.raises(ExportError, match=r"report\.json: no parity report"):
        read_report(path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none\.json: cannot be read"):
        read_report(tmp_path / "none.json")


def test_a_report_of_many_layers_stays_small(tmp_path: Path) -> None:
    save_report(replace(a_solved_report(layers=64), positions=1 << 15), tmp_path / "report.json")
    assert (tmp_path / "report.json").stat().st_size < 200_000
