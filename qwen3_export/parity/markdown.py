"""Parity reports as a Markdown table, for a README or a comment on a pull request."""

from __future__ import annotations

from collections.abc import Sequence

from qwen3_export.parity.metrics import Comparison
from qwen3_export.parity.report import Report, number_text

__all__ = ["COLUMNS", "table_rows", "to_markdown"]

COLUMNS = (
    "target", "recipe", "method", "size", "bits per weight", "conversion", "shipped", "quantization", "end to end",
    "same top-1", "verdict",
)  # fmt: skip


def to_markdown(reports: Sequence[Report]) -> str:
    """A table with a row for each report, in the order given. The four numbers are mean KL divergences in nats."""
    rows = [COLUMNS, ["---"] * len(COLUMNS), *table_rows(reports)]
    return "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in rows)


def table_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """The cells of each report, as text, in the order of ``COLUMNS``."""
    return [
        (
            report.target,
            report.recipe,
            report.method,
            f"{report.size_bytes / 1e6:,.2f} MB",
            f"{report.bits_per_weight:.2f}",
            _number(report.conversion),
            _number(report.shipped),
            _number(report.quantization),
            _number(report.end_to_end),
            "–" if report.end_to_end.same_top1 is None else f"{report.end_to_end.same_top1:.2%}",
            report.verdict.replace("_", " "),
        )
        for report in reports
    ]


def _number(numbers: Comparison) -> str:
    """The mean KL divergence, with a remark if it is out of bounds."""
    text = number_text(numbers.mean_kld)
    return f"{text} (out of bounds)" if numbers.status == "fail" else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
