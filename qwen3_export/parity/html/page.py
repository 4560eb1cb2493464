"""The HTML page of one report, or of several reports with a table and a chart at the top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from qwen3_export.files.recognise import HTML_MARKER
from qwen3_export.parity.html.markup import Markup, join, tag
from qwen3_export.parity.html.numbers import bytes_text, percent, scientific
from qwen3_export.parity.html.scatter import scatter_figure
from qwen3_export.parity.html.section import report_sections, status_mark
from qwen3_export.parity.html.style import STYLE
from qwen3_export.parity.report import Report

__all__ = ["to_html", "to_overview"]

# With this policy the browser itself refuses to fetch or to run anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
# Columns of words, aligned on the left
WORDS = frozenset({"artifact", "verdict", "target", "recipe", "method"})
NUMBER_COLUMNS = ("conversion", "shipped", "quantization", "end_to_end")


def to_html(report: Report) -> str:
    """The page of one report, as a whole HTML document."""
    title = f"{report.artifact}: parity {_words(report.verdict)}"
    return _page(title, tag("h1", report.artifact), report_sections(report))


def to_overview(reports: Sequence[Report], *, targets: Sequence[str] = ()) -> str:
    """The page of several reports: first how they compare, then each report in a section that can be folded.

    Sections of failed reports are open, and so is the section of a single report. ``targets`` is the order in which
    the chart gives shapes and colours to targets; by default, the order of the reports.
    """
    verdicts = Counter(report.verdict for report in reports)
    counted = ", ".join(f"{count} {_words(verdict)}" for verdict, count in verdicts.items())
    is_single = len(reports) == 1
    title = f"Parity of {len(reports)} {'artifact' if is_single else 'artifacts'}: {counted}"
    scatter = scatter_figure(reports, targets=targets)
    return _page(
        title,
        tag("h1", title),
        _table(reports),
        tag("section", tag("h2", "Size against quality"), scatter) if scatter else "",
        tag("h2", "Each report"),
        *(_folded(report, i, is_open=is_single or report.verdict == "fail") for i, report in enumerate(reports)),
    )


def _page(title: str, *content: str) -> str:
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="color-scheme", content="light dark"),
        tag("meta", name="generator", content=HTML_MARKER),
        tag("title", title),
        tag("style", Markup(f"\n{STYLE}\n")),
    )
    document = tag("html", "\n", head, "\n", tag("body", tag("main", *content)), "\n", lang="en")
    return f"<!doctype html>\n{document}\n"


def _table(reports: Sequence[Report]) -> Markup:
    """One row a report. Narrow screens show rows as blocks, so ``role`` keeps them a table for screen readers."""
    heads = ("artifact", "verdict", "target", "recipe", "method", "size", "bits per weight", *NUMBER_COLUMNS,
             "same top-1")  # fmt: skip
    names = [tag("th", name, scope="col", role="columnheader", class_=_alignment(name)) for name in heads]
    head = tag("thead", tag("tr", *names, role="row"), role="rowgroup")
    rows = [_row(report, i, heads) for i, report in enumerate(reports)]
    table = tag("table", head, tag("tbody", *rows, role="rowgroup"), class_="overview", role="table")
    return tag("div", table, class_="wide")


def _row(report: Report, index: int, heads: Sequence[str]) -> Markup:
    cells = [
        status_mark(report.verdict),
        report.target,
        report.recipe,
        report.method,
        bytes_text(report.size_bytes),
        f"{report.bits_per_weight:.2f}",
        *(_number(report, name) for name in NUMBER_COLUMNS),
        percent(report.end_to_end.same_top1),
    ]
    link = tag("a", report.artifact, href=f"#report-{index}")
    labelled = [
        tag("td", cell, data_label=head, role="cell", class_=_alignment(head))
        for cell, head in zip(cells, heads[1:], strict=True)
    ]
    return tag("tr", tag("th", link, scope="row", role="rowheader"), *labelled, role="row")


def _alignment(head: str) -> str | None:
    return "text" if head in WORDS else None


def _number(report: Report, name: str) -> Markup:
    numbers = getattr(report, name)
    text = scientific(numbers.mean_kld)
    return tag("span", text, " ✗", class_="fail") if numbers.status == "fail" else Markup(text)


def _folded(report: Report, index: int, *, is_open: bool) -> Markup:
    """A report that can be folded to its name. Browsers unfold it when a link leads to its heading."""
    summary = tag("summary", report.artifact, " ", status_mark(report.verdict))
    heading = tag("h2", report.artifact, id=f"report-{index}")
    inside = join([heading, report_sections(report, level=3)])
    return tag("details", summary, inside, class_="report", open=is_open)


def _words(verdict: str) -> str:
    return verdict.replace("_", " ")
