"""Parity reports as text: a coloured table for terminals, plain lines for logs and pipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen3_export.parity.markdown import COLUMNS, table_rows
from qwen3_export.parity.metrics import Comparison
from qwen3_export.parity.report import NUMBERS, Decode, Report, number_text

if TYPE_CHECKING:
    from rich.console import Group

__all__ = [
    "HEADS",
    "describe_choices",
    "describe_decode",
    "describe_sampling",
    "overview_text",
    "summary_rows",
    "to_renderable",
    "to_text",
    "tuning_lines",
]

HEADS = ("", "mean KLD", "p99 KLD", "max KLD", "same top-1", "ppl ratio", "bound", "status")
COLOURS = {"pass": "green", "fail": "red", "not_run": "yellow"}


def summary_rows(report: Report) -> list[tuple[str, ...]]:
    """A row of cells for each of the four numbers, in the order of ``HEADS``."""
    rows = []
    for name in NUMBERS:
        numbers: Comparison = getattr(report, name)
        share = "–" if numbers.same_top1 is None else f"{numbers.same_top1:.2%}"
        ratio = "–" if numbers.perplexity_ratio is None else f"{numbers.perplexity_ratio:.5f}"
        klds = [number_text(value) for value in (numbers.mean_kld, numbers.p99_kld, numbers.max_kld)]
        rows.append((name, *klds, share, ratio, number_text(numbers.bound), numbers.status))
    return rows


def to_text(report: Report) -> str:
    """One report as plain lines."""
    lines = _aligned([HEADS, *summary_rows(report)])
    lines.append(f"decode        {describe_decode(report.decode)}")
    lines += [f"- {reason}" for reason in report.reasons]
    lines += describe_choices(report)
    lines += [f"note: {note}" for note in report.notes]
    lines.append(f"verdict: {report.verdict} ({describe_sampling(report)})")
    return "\n".join(line.rstrip() for line in lines)


def overview_text(reports: Sequence[Report]) -> str:
    """Several reports as a plain table, one row each."""
    names = ("artifact", *(report.artifact for report in reports))
    table = [(name, *row) for name, row in zip(names, (COLUMNS, *table_rows(reports)), strict=True)]
    return "".join(f"{line.rstrip()}\n" for line in _aligned(table))


def to_renderable(report: Report) -> Group:
    """One report for a console of the rich library; the same content as ``to_text``."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(*HEADS, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for *cells, status in summary_rows(report):
        table.add_row(*cells, Text(status, style=COLOURS[status]))
    lines = [f"decode {describe_decode(report.decode)}", *(f"- {reason}" for reason in report.reasons)]
    lines += describe_choices(report)
    lines += [f"note: {note}" for note in report.notes]
    verdict = Text.assemble("verdict: ", (report.verdict, COLOURS[report.verdict]), f" ({describe_sampling(report)})")
    return Group(table, *(Text(line) for line in lines), verdict)


def describe_choices(report: Report) -> list[str]:
    """Lines on how formats were chosen, and norms and scales tuned, as the artifact records it."""
    return [*_allocation_line(report.allocation), *tuning_lines(report.tuning)]


def _allocation_line(allocation: Mapping[str, Any] | None) -> list[str]:
    """None where formats are a recipe's."""
    if allocation is None:
        return []
    measured, by_recipe = (allocation.get(key) for key in ("measured", "measured_by_recipe"))
    if not isinstance(measured, float):
        return ["formats: chosen by what they cost"]
    if not isinstance(by_recipe, float):
        return [f"formats: chosen by what they cost ({measured:.2e} nats, rounded to nearest, on held-back text)"]
    both = f"{measured:.2e} nats against {by_recipe:.2e} by the recipe, rounded to nearest, on held-back text"
    left, left_by_recipe = (allocation.get(key) for key in ("left", "left_by_recipe"))
    if isinstance(left, float) and isinstance(left_by_recipe, float) and left < 1:
        both += f"; a solver was expected to leave {left:.0%} and {left_by_recipe:.0%} of that"
    if allocation.get("keeps_recipe") is True:
        return [f"formats: the recipe's, because chosen ones lose no less ({both})"]
    return [f"formats: chosen by what they cost ({both})"]


def tuning_lines(tuning: Mapping[str, Any] | None) -> list[str]:
    """A line on how norms and scales were tuned; none where nothing was."""
    if tuning is None:
        return []
    measured, before = (tuning.get(key) for key in ("measured", "measured_before"))
    if not isinstance(measured, float) or not isinstance(before, float):
        return ["norms and scales: tuned"]
    both = f"{measured:.2e} nats against {before:.2e} before, on held-back text"
    if tuning.get("keeps_solved") is True:
        return [f"norms and scales: not changed, because tuned ones gained nothing for some text ({both})"]
    return [f"norms and scales: tuned ({both})"]


def describe_decode(decode: Decode) -> str:
    """One line on decoding: the status, the differences, and their bounds."""
    if decode.max_abs_vs_prefill is None:
        return decode.status
    cache = ""
    if decode.cache_relative is not None:
        cache = (
            f"; the cache by {number_text(decode.cache_relative)} of itself (bound {number_text(decode.cache_bound)})"
        )
    return (
        f"{decode.status}: chunks against one prefill differ by {number_text(decode.max_abs_vs_prefill)} in the "
        f"exact form (bound {number_text(decode.bound)}), {number_text(decode.shipped_max_abs_vs_prefill)} as shipped "
        f"(bound {number_text(decode.shipped_bound)}){cache}"
    )


def describe_sampling(report: Report) -> str:
    """One line on how much was compared, and the time and memory that it took."""
    parts = [f"{report.positions} positions"]
    if report.sampled is not None:
        sampled = report.sampled
        parts.insert(0, f"{sampled.mode} check: {len(sampled.prompts)} texts")
        parts.append(f"exact form: {sampled.exact_form}")
        parts.append(f"values of {sampled.rows:,} of {sampled.rows_in_all:,} rows")
    parts.append(f"{report.seconds:.1f} s, peak {report.peak_memory_bytes / 2**30:.2f} GiB")
    return ", ".join(parts)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table]
