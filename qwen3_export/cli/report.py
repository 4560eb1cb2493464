"""``qwen3-export report``: saved parity reports as one page, one table, or one file for CI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3_export.cli.check import check_outputs
from qwen3_export.cli.console import say, show

EPILOG = """Examples:

  qwen3-export report demo-*.json --html parity.html

  qwen3-export report gguf.json onnx.json coreml.json --markdown
"""


def report(
    reports: Annotated[
        list[Path], typer.Argument(help="Reports in JSON, as check --json writes them.", show_default=False)
    ],
    html: Annotated[
        Path | None, typer.Option("--html", help="Write one page over all of them.", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML, a suite for each.", show_default=False)
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table.")] = False,
) -> None:
    """Show saved reports together, in the order given; nothing is run, and the exit code judges nothing."""
    from qwen3_export.parity.html import save_overview
    from qwen3_export.parity.junit import save_junit
    from qwen3_export.parity.markdown import to_markdown
    from qwen3_export.parity.reading import read_report
    from qwen3_export.parity.summary import overview_text

    found = [read_report(path) for path in reports]
    check_outputs(html=html, junit=junit, inputs=reports)
    if html is not None:
        save_overview(found, html)
        say(f"wrote {html}")
    if junit is not None:
        save_junit(found, junit)
        say(f"wrote {junit}")
    show(to_markdown(found) if markdown else overview_text(found), end="")


report.__doc__ = f"{report.__doc__}\n\n{EPILOG}"
