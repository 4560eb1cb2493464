"""One report as sections of a page: the verdict first, then the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from qwen3_export.files.json_file import object_in
from qwen3_export.parity.html.curves import curve_figure
from qwen3_export.parity.html.heat import formats_table, heat_tables, output_errors
from qwen3_export.parity.html.markup import Markup, definitions, join, tag
from qwen3_export.parity.html.numbers import bytes_text, percent, scientific
from qwen3_export.parity.metrics import Comparison, Status
from qwen3_export.parity.report import NUMBERS, Report
from qwen3_export.parity.summary import describe_choices

__all__ = ["report_sections", "status_mark"]

VERDICTS = {
    "pass": "The artifact computes what its checkpoint computes, within every bound.",
    "fail": "The artifact is out of bounds:",
    "not_run": "Nothing is out of bounds as far as was looked, and not everything could be measured:",
}
SYMBOLS = {"pass": "M3 8.5l3.5 3.5L13 4.5", "fail": "M4 4l8 8M12 4l-8 8", "not_run": "M3 8h10"}
SITES = {
    "input": "the embedding",
    "q_rope": "queries after q_norm and RoPE",
    "k_rope": "keys after k_norm and RoPE",
    "attention": "what attention adds (v_proj, the mask, softmax, o_proj)",
    "after_attention": "the residual stream after attention",
    "mlp": "what the MLP adds",
    "output": "the residual stream after the layer",
    "final": "the final norm",
    "logits": "the head",
}


@dataclass(frozen=True, slots=True)
class _Headings:
    """The level of a report's section headings: 2 on a page of one report, 3 on a page of several."""

    level: int

    def section(self, title: str, *content: str) -> Markup:
        return tag("section", tag(f"h{self.level}", title), *content)


def report_sections(report: Report, *, level: int = 2) -> Markup:
    """All sections of a report, without a heading for the report itself; ``level`` is that of the section headings."""
    headings = _Headings(level)
    numbers = headings.section("The four numbers", _numbers(report, headings))
    where = headings.section("Where it leaves the reference", _divergence(report)) if report.first_divergence else ""
    evidence = tag("div", *_evidence(report, headings), class_="columns")
    return join([_verdict(report), _facts(report), numbers, where, evidence])


def status_mark(status: Status) -> Markup:
    """The status as a word with a symbol, so that its meaning does not depend on colour."""
    picture = tag("svg", tag("path", d=SYMBOLS[status]), viewBox="0 0 16 16", aria_hidden="true")
    return tag("span", picture, status.replace("_", " "), class_=f"status {status}")


def _evidence(report: Report, headings: _Headings) -> Iterator[Markup]:
    if report.curves:
        yield headings.section("Over the positions of a text", tag("p", _about_curves()), curve_figure(report.curves))
    if report.weight_errors:
        yield headings.section("Error by layer and role", *_weights(report))
    measured = output_errors(object_in(report.calibration, "tensor_errors"))
    if measured:
        yield headings.section("Error of the outputs", *_outputs(report, measured))
    yield headings.section("Decoding", *_decode(report))
    yield headings.section("What was looked at", _sampling(report))
    yield headings.section("How to run it again", tag("pre", tag("code", _command(report))))
    yield headings.section("Versions", definitions(report.versions.items(), class_="grid"))


def _verdict(report: Report) -> Markup:
    reasons = list(report.reasons) if report.verdict != "pass" else []
    if report.verdict == "not_run" and not reasons:
        missing = [name for name in NUMBERS if getattr(report, name).status == "not_run"]
        reasons = [f"{', '.join([*missing, *(['decode'] if report.decode.status == 'not_run' else [])])}: not run"]
    reasons += [*describe_choices(report), *(f"note: {note}" for note in report.notes)]
    listed = tag("ul", *(tag("li", reason) for reason in reasons), class_="why") if reasons else ""
    return tag(
        "div",
        tag("p", status_mark(report.verdict), class_="status"),
        tag("p", VERDICTS[report.verdict], class_="why"),
        listed,
        class_=f"verdict {report.verdict}",
    )


def _facts(report: Report) -> Markup:
    return definitions(
        [
            ("model", report.model),
            ("target", report.target),
            ("recipe", report.recipe),
            ("method", report.method),
            ("size", bytes_text(report.size_bytes)),
            ("bits per weight", f"{report.bits_per_weight:.2f}"),
            ("positions compared", f"{report.positions:,}"),
        ],
        class_="grid",
    )


def _numbers(report: Report, headings: _Headings) -> Markup:
    note = "KL(reference ‖ candidate), in nats a position; 0 is equality."
    cards = [_card(name, getattr(report, name), report, headings) for name in NUMBERS]
    return join([tag("p", note, class_="soft"), tag("div", *cards, class_="cards")])


def _card(name: str, numbers: Comparison, report: Report, headings: _Headings) -> Markup:
    return tag(
        "div",
        tag(f"h{headings.level + 1}", tag("span", name), status_mark(numbers.status)),
        tag("p", scientific(numbers.mean_kld), class_="large"),
        tag("p", tag("small", NUMBERS[name]), class_="soft"),
        "" if numbers.status == "not_run" else definitions(_details(name, numbers, report)),
        class_="card",
    )


def _details(name: str, numbers: Comparison, report: Report) -> list[tuple[str, str]]:
    """The lines below the mean of one of the four numbers."""
    details = [
        ("p99 KLD", scientific(numbers.p99_kld)),
        ("max KLD", scientific(numbers.max_kld)),
        ("same top-1", percent(numbers.same_top1)),
        ("ppl ratio", "–" if numbers.perplexity_ratio is None else f"{numbers.perplexity_ratio:.5g}"),
        ("max logit diff", scientific(numbers.max_abs)),
        ("bound", "none" if numbers.bound is None else scientific(numbers.bound)),
    ]
    if name == "shipped" and report.floor.mean_kld is not None:
        details.append(("modelled floor", scientific(report.floor.mean_kld)))
    if name == "end_to_end":
        gates = report.bounds.each(numbers)
        details += [(f"your {gate.name.replace('_', '-')}", f"{gate.bound:g}") for gate in gates]
    return details


def _divergence(report: Report) -> Markup:
    where = report.first_divergence
    assert where is not None
    facts = [
        ("layer", "outside the layers" if where.layer is None else str(where.layer)),
        ("place", f"{where.site}: {SITES[where.site]}" if where.site in SITES else where.site),
        ("relative difference", scientific(where.relative)),
    ]
    if where.cause is not None:
        facts.append(("likely cause", where.cause))
    return definitions(facts, class_="list")


def _about_curves() -> str:
    return (
        "A loss that grows along a text points to the KV cache, positions or the mask; a level one is the cost of "
        "rounding. Both axes are logarithmic."
    )


def _weights(report: Report) -> list[Markup]:
    errors = {(error.role, error.layer): error.relative for error in report.weight_errors}
    caption = "Stored values against the checkpoint's: root mean square of the error, in % of the values'"
    about = "Framed: more than four times the median of its column."
    return [
        heat_tables(errors, caption=caption),
        tag("p", about, class_="soft"),
        formats_table(report.weight_errors),
    ]


def _outputs(report: Report, measured: dict[tuple[str, int | None], float]) -> list[Markup]:
    calibration = report.calibration or {}
    tokens, dataset = calibration.get("tokens"), calibration.get("dataset")
    count = f"{tokens:,}" if isinstance(tokens, int) else "an unknown number of"
    text = f"{count} tokens of {dataset if isinstance(dataset, str) and dataset else 'a text that is not named'}"
    return [
        tag("p", f"What storing a weight costs its output, as {report.method} recorded it on {text}."),
        heat_tables(measured, caption="Root mean square of the output's error, in % of the output's"),
    ]


def _decode(report: Report) -> list[Markup]:
    decode = report.decode
    about = "One prefill, chunks, and token by token through the KV cache must agree. Largest difference of a logit: "
    rows = [("status", status_mark(decode.status))]
    pairs = (
        ("exact form", decode.max_abs_vs_prefill, decode.bound),
        ("as shipped", decode.shipped_max_abs_vs_prefill, decode.shipped_bound),
    )
    rows += [(name, Markup(f"{scientific(value)} (bound {scientific(bound)})")) for name, value, bound in pairs]
    if decode.cache_relative is not None:
        told = f"{scientific(decode.cache_relative)} of themselves (bound {scientific(decode.cache_bound)})"
        rows.append(("cached keys and values", Markup(told)))
    return [tag("p", about), definitions(rows, class_="list")]


def _sampling(report: Report) -> Markup:
    facts = [("runtime", f"{report.runtime.name} {report.runtime.version or '(not installed)'}")]
    if report.sampled is not None:
        sampled = report.sampled
        facts += [
            ("check", sampled.mode),
            ("exact form", sampled.exact_form),
            ("values", f"{sampled.rows:,} of {sampled.rows_in_all:,} rows of {sampled.weights:,} weights"),
            ("texts", f"{len(sampled.prompts)}: {', '.join(sampled.prompts)}"),
        ]
    facts += [
        ("time", f"{report.seconds:.1f} s"),
        ("peak memory", f"{report.peak_memory_bytes / 2**30:.2f} GiB"),
    ]
    return definitions(facts, class_="list")


def _command(report: Report) -> str:
    full = " --full" if report.sampled is not None and report.sampled.mode == "full" else ""
    return report.command or f"qwen3-export check {report.artifact} --model {report.model}{full}"
