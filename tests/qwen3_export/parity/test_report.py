"""The report's keys, verdicts and shapes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qwen3_export.parity.html import save_html, to_html
from qwen3_export.parity.metrics import NOT_RUN, Comparison
from qwen3_export.parity.report import (
    NUMBERS,
    Decode,
    FirstDivergence,
    Gates,
    Report,
    Runtime,
    Sampling,
    load_report,
    save_report,
)
from qwen3_export.parity.summary import to_renderable, to_text

KEYS = {
    "artifact", "target", "recipe", "method", "model", "verdict", "size_bytes", "bits_per_weight", "conversion",
    "shipped", "quantization", "end_to_end", "decode", "metadata", "first_divergence", "positions", "runtime",
    "versions", "seconds", "peak_memory_bytes",
}  # fmt: skip
NUMBER_KEYS = {"mean_kld", "p99_kld", "max_kld", "max_abs", "same_top1", "perplexity_ratio", "bound", "status"}

GOOD = Comparison(
    mean_kld=1e-12, p99_kld=1e-11, max_kld=1e-10, max_abs=1e-5, same_top1=1.0, perplexity_ratio=1.0, bound=1e-9,
    status="pass",
)  # fmt: skip
BAD = replace(GOOD, mean_kld=0.5, status="fail")


@pytest.fixture
def report() -> Report:
    return Report(
        artifact="demo-q4_k_m.gguf", target="gguf", recipe="q4_k_m", method="rtn", model="demo", size_bytes=5_500_000,
        bits_per_weight=5.4, conversion=GOOD, shipped=GOOD, quantization=GOOD, end_to_end=GOOD,
        decode=Decode(max_abs_vs_prefill=1e-6, bound=1e-3, shipped_max_abs_vs_prefill=0.1, shipped_bound=0.5,
                      status="pass"),
        positions=384, runtime=Runtime(name="llama.cpp", version="0.3.36"), versions={"python": "3.11"},
        sampled=Sampling(mode="quick", prompts=("a",), exact_form="6 of 6 layers", weights=68, rows=9, rows_in_all=9),
        seconds=3.2, peak_memory_bytes=1 << 29,
    )  # fmt: skip


def test_json_has_the_documented_keys(report: Report, tmp_path: Path) -> None:
    save_report(report, tmp_path / "report.json")
    document = load_report(tmp_path / "report.json")
    assert document.keys() >= KEYS
    assert all(document[name].keys() == NUMBER_KEYS for name in NUMBERS)
    assert document["decode"].keys() >= {"max_abs_vs_prefill", "bound", "status"}
    assert document["runtime"].keys() == {"name", "version"}
    assert document["verdict"] == "pass"


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "pass"),
        ({"conversion": BAD}, "fail"),
        ({"conversion": NOT_RUN}, "not_run"),
        ({"conversion": NOT_RUN, "shipped": BAD}, "fail"),
        ({"decode": Decode()}, "not_run"),
        ({"decode": Decode(status="fail")}, "fail"),
        ({"metadata": ("eos differs",)}, "fail"),
        ({"values": ("q_proj differs",)}, "fail"),
        ({"gates": ("mean KLD too large",)}, "fail"),
        ({"shipped": NOT_RUN, "metadata": ("eos differs",)}, "fail"),
    ],
)
def test_verdict(report: Report, change: dict[str, object], verdict: str) -> None:
    changed = replace(report, **change)
    assert changed.verdict == verdict
    assert to_text(changed).splitlines()[-1].startswith(f"verdict: {verdict}")
    assert changed.reasons or verdict != "fail"
    assert not (changed.reasons and verdict == "pass")


def test_what_is_not_finite_is_null(report: Report, tmp_path: Path) -> None:
    save_report(replace(report, conversion=replace(BAD, mean_kld=math.inf, max_abs=math.nan)), tmp_path / "r.json")
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    document = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert document["conversion"]["mean_kld"] is None
    assert document["conversion"]["status"] == "fail"


def test_gates() -> None:
    numbers = replace(GOOD, mean_kld=0.02, p99_kld=0.3, same_top1=0.9)
    assert Gates().failures(numbers) == []
    assert Gates(max_mean_kld=0.02, max_p99_kld=0.3, min_top1=0.9).failures(numbers) == []
    failures = Gates(max_mean_kld=0.01, max_p99_kld=0.1, min_top1=0.95).failures(numbers)
    assert failures == [
        "mean KLD 0.02 is above the bound 0.01",
        "p99 KLD 0.3 is above the bound 0.1",
        "top-1 agreement 0.9 is below the bound 0.95",
    ]
    assert Gates(max_mean_kld=0.01).failures(NOT_RUN) == []
    assert Gates(max_mean_kld=0.01).failures(replace(numbers, mean_kld=math.nan))


def test_text_says_why(report: Report) -> None:
    failed = replace(report, conversion=BAD, first_divergence=FirstDivergence(layer=3, site="k_rope", relative=0.02))
    text = to_text(failed)
    assert "conversion: mean KLD 0.5 exceeds 1e-09" in text
    assert "hidden states part at layer 3 k_rope" in text
    missing = replace(report, runtime=Runtime(name="llama.cpp", version=None), shipped=NOT_RUN)
    assert "llama.cpp is not installed" in to_text(missing)


def test_notes_are_told_and_decide_nothing(report: Report) -> None:
    noted = replace(report, notes=("llama.cpp <b>keeps</b> the spaces",))
    assert noted.verdict == report.verdict
    assert to_text(noted).splitlines()[-2] == "note: llama.cpp <b>keeps</b> the spaces"
    assert "note: llama.cpp &lt;b&gt;keeps&lt;/b&gt; the spaces" in to_html(noted)
    assert noted.to_dict()["notes"] == list(noted.notes)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (None, None),
        (
            {"measured": 0.002, "measured_by_recipe": 0.003, "keeps_recipe": False},
            "formats: chosen by what they cost (2.00e-03 nats against 3.00e-03 by the recipe",
        ),
        (
            {"measured": 0.003, "measured_by_recipe": 0.002, "keeps_recipe": True},
            "formats: the recipe's, because chosen ones lose no less (3.00e-03 nats against 2.00e-03",
        ),
        (
            {"measured": 0.003, "measured_by_recipe": 0.002, "left": 0.4, "left_by_recipe": 0.8},
            "on held-back text; a solver was expected to leave 40% and 80% of that)",
        ),
        ({"measured": 0.003, "measured_by_recipe": None}, "formats: chosen by what they cost (3.00e-03 nats"),
        ({"measured": "much"}, "formats: chosen by what they cost"),
    ],
)
def test_how_formats_were_chosen(report: Report, record: dict[str, object] | None, told: str | None) -> None:
    found = replace(report, allocation=record)
    assert found.verdict == report.verdict
    for text in (to_text(found), unescape(to_html(found))):
        assert ("formats: " in text) == (told is not None)
        assert told is None or told in text
    assert found.to_dict()["allocation"] == record


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (None, None),
        (
            {"measured": 0.002, "measured_before": 0.003, "keeps_solved": False},
            "norms and scales: tuned (2.00e-03 nats against 3.00e-03 before, on held-back text)",
        ),
        (
            {"measured": 0.002, "measured_before": 0.003, "keeps_solved": True},
            "norms and scales: not changed, because tuned ones gained nothing for some text",
        ),
        ({"measured": "much"}, "norms and scales: tuned"),
    ],
)
def test_how_norms_and_scales_were_tuned(report: Report, record: dict[str, object] | None, told: str | None) -> None:
    found = replace(report, tuning=record)
    assert found.verdict == report.verdict
    for text in (to_text(found), unescape(to_html(found))):
        assert ("norms and scales: " in text) == (told is not None)
        assert told is None or told in text
    assert found.to_dict()["tuning"] == record


def test_rich_shows_the_same(report: Report) -> None:
    from rich.console import Console

    console = Console(width=160, record=True, quiet=True, file=None)
    console.quiet = False
    with console.capture() as captured:
        console.print(to_renderable(report))
    assert "conversion" in captured.get()
    assert "verdict: pass" in captured.get()


def test_html_is_one_sound_file(report: Report, tmp_path: Path) -> None:
    named = replace(report, artifact="<b>&.gguf", metadata=("a < b",))
    save_html(named, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;&amp;.gguf" in text
    assert "a &lt; b" in text
    assert "prefers-color-scheme: dark" in text
    assert "http" not in text.replace("http-equiv", "")
    assert _unclosed_tags(text) == []


def _unclosed_tags(text: str) -> list[str]:
    open_tags: list[str] = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag: str, _attrs: object) -> None:
            if tag not in ("meta", "br"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Parser().feed(text)
    return open_tags
