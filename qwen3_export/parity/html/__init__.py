"""Parity reports as HTML pages: one file each, without scripts and without network access, in light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import is_html_report
from qwen3_export.parity.html.page import to_html, to_overview
from qwen3_export.parity.report import Report

__all__ = ["save_html", "save_overview", "to_html", "to_overview"]


def save_html(report: Report, path: Path, *, overwrite: bool = True) -> None:
    """Write one report as a page; it replaces an earlier page, and no other file (OutputError)."""
    write_text(path, to_html(report), overwrite=overwrite, is_ours=is_html_report)


def save_overview(reports: Sequence[Report], path: Path, *, targets: Sequence[str] = ()) -> None:
    """Write several reports as one page: a table, a chart of size against quality, and a section for each report.

    ``targets`` is the order in which the chart gives shapes and colours to targets, so that a target looks the same
    on every page. Targets that are not in it come after those that are, in the order of the reports. An earlier page is
    replaced, and no other file.
    """
    write_text(path, to_overview(reports, targets=targets), overwrite=True, is_ours=is_html_report)
