"""A parity report as one HTML file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

import html
from pathlib import Path

from qwen3_export.atomic import write_text
from qwen3_export.parity.report import NUMBERS, Report
from qwen3_export.parity.summary import HEADS, describe_decode, describe_sampling, summary_rows

__all__ = ["save_html", "to_html"]

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --paper: #fff; --line: #d9dee7; --soft: #5b6475;
        --pass: #17734a; --fail: #b3261e; --not_run: #8a6100; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ef; --paper: #14171d; --line: #333a47; --soft: #9aa4b5;
          --pass: #5fd39a; --fail: #ff8a80; --not_run: #e8be5a; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; } .soft { color: var(--soft); }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin: 1rem 0; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid var(--line);
         font-variant-numeric: tabular-nums; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } td small { color: var(--soft); white-space: normal; }
.pass { color: var(--pass); } .fail { color: var(--fail); } .not_run { color: var(--not_run); }
""".strip()


def to_html(report: Report) -> str:
    """The whole page."""
    title = html.escape(f"{report.artifact}: parity {report.verdict}")
    facts = " · ".join(
        html.escape(fact)
        for fact in (report.model, report.target, report.recipe, report.method, f"{report.size_bytes:,} bytes",
                     f"{report.bits_per_weight:.2f} bits per weight")
        if fact
    )  # fmt: skip
    reasons = "".join(f"<li>{html.escape(reason)}</li>" for reason in report.reasons)
    runtime = html.escape(f"{report.runtime.name} {report.runtime.version or 'not installed'}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{html.escape(report.artifact)}: <span class="{report.verdict}">{_status(report.verdict)}</span></h1>
<p class="soft">{facts}</p>
{f"<ul>{reasons}</ul>" if reasons else ""}
<div class="wide"><table>
<tr>{"".join(f"<th>{head}</th>" for head in HEADS)}</tr>
{"".join(_row(row) for row in summary_rows(report))}
</table></div>
<p>Decode: {html.escape(describe_decode(report.decode))}</p>
<p class="soft">KL(reference ‖ candidate), nats per position. {html.escape(describe_sampling(report))}.
Runtime: {runtime}.</p>
</body>
</html>
"""


def save_html(report: Report, path: Path) -> None:
    write_text(path, to_html(report))


def _row(row: tuple[str, ...]) -> str:
    name, *cells, status = row
    explained = f"{name}<br><small>{html.escape(NUMBERS[name])}</small>"
    middle = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
    return f'<tr><td>{explained}</td>{middle}<td class="{status}">{_status(status)}</td></tr>\n'


def _status(status: str) -> str:
    return status.replace("_", " ")
