"""Parity reports as one HTML file that needs nothing else: no network, no script, light or dark as the system is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen3_export.files.atomic import write_text
from qwen3_export.files.recognise import is_html_report
from qwen3_export.parity.html.page import to_html, to_overview
from qwen3_export.parity.report import Report

__all__ = ["save_html", "save_overview", "to_html", "to_overview"]


def save_html(report: Report, path: Path) -> None:
    """Write one report as a page; it replaces an earlier page, and no other file (OutputError)."""
    write_text(path, to_html(report), overwrite=True, is_ours=is_html_report)


def save_overview(reports: Sequence[Report], path: Path) -> None:
    """Write several reports as one page: a table, size against quality, and a section each; see ``save_html``."""
    write_text(path, to_overview(reports), overwrite=True, is_ours=is_html_report)
