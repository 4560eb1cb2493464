"""The page as a document: sound markup, verdict first, every part that a report has, nothing to fetch."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from reports import a_failing_report, a_report, a_solved_report, an_unrun_report, numbers

from qwen3_export.parity.html import save_html, save_overview, to_html, to_overview
from qwen3_export.parity.html.heat import output_errors
from qwen3_export.parity.html.markup import tag
from qwen3_export.parity.html.numbers import percent, scientific
from qwen3_export.parity.html.style import DARK, LIGHT
from qwen3_export.parity.report import Report

REPORTS = [a_report(), a_solved_report(), a_failing_report(), an_unrun_report()]
PAGES = [*(to_html(report) for report in REPORTS), to_overview(REPORTS), to_overview(REPORTS[:1])]
VOID = ("meta", "br")


class Reader(HTMLParser):
    """Checks that elements close in order, and gathers what a test asks for."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "head" not in self.open:
            self.text += data + "\n"

    def attributes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for element, attributes in self.elements if element == name]


@pytest.mark.parametrize("page", PAGES)
def test_is_sound_and_needs_nothing_else(page: str) -> None:
    reader = Reader(page)
    assert not re.search(r"https?:|//|\burl\(|@import|javascript:", page)
    fetching = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "base", "form"}
    assert fetching.isdisjoint(name for name, _ in reader.elements)
    assert not any("src" in attributes for _, attributes in reader.elements)
    assert any("default-src 'none'" in (meta.get("content") or "") for meta in reader.attributes("meta"))
    assert "prefers-color-scheme: dark" in page
    ids = [attributes["id"] for _, attributes in reader.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link["href"] for link in reader.attributes("a")} <= {f"#{name}" for name in ids}


@pytest.mark.parametrize("page", PAGES)
def test_can_be_heard(page: str) -> None:
    """Table heads have a scope, pictures a title and a description, headings skip no level."""
    reader = Reader(page)
    assert all(head.get("scope") in ("col", "row") for head in reader.attributes("th"))
    pictures = [picture for picture in reader.attributes("svg") if picture.get("aria-hidden") != "true"]
    assert all(picture.get("role") == "img" for picture in pictures)
    names = [name for name, _ in reader.elements]
    assert names.count("desc") == len(pictures)
    assert names.count("title") == 1 + len(pictures)
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_verdict_comes_first() -> None:
    text = Reader(to_html(a_failing_report())).text
    order = ["fail", "out of bounds", "layer_norm_rms_epsilon", "The four numbers", "Where it leaves", "Over the",
             "Error by layer", "Decoding", "What was looked at", "How to run it again", "Versions"]  # fmt: skip
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_says_what_the_report_says() -> None:
    failing = Reader(to_html(a_failing_report())).text
    assert all(reason in failing for reason in a_failing_report().reasons)
    for words in ("eps 1e-05", "the residual stream after attention", "1.06\u202f×\u202f10⁻⁶", "your max-mean-kld"):
        assert words in failing
    solved = Reader(to_html(a_solved_report())).text
    for words in ("56,320 tokens of sample.jsonl", "qwen3-export check demo-q4_k_m.gguf --model demo", "99.00", "5.19",
                  "greeting, code", "900 of 31,488 rows", "llama.cpp 0.3.36", "3.11.7"):  # fmt: skip
        assert words in solved
    unrun = Reader(to_html(an_unrun_report())).text
    assert "onnxruntime is not installed" in unrun
    assert "not run" in unrun


def test_names_are_text() -> None:
    page = to_html(a_failing_report())
    assert "&lt;b&gt;&amp;.gguf" in page
    assert "<i>" not in page
    assert tag("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'


def test_an_old_report_has_a_page_too() -> None:
    """Without what newer versions gather."""
    bare = replace(a_report(), curves={}, weight_errors=(), command=None, sampled=None, calibration=None)
    text = Reader(to_html(bare)).text
    assert "Over the positions" not in text
    assert "qwen3-export check demo-q4_k_m.gguf --model demo" in text


def test_what_is_not_finite_is_drawn_all_the_same() -> None:
    report = a_failing_report()
    points = report.curves["shipped"]
    broken = replace(
        report,
        curves={"shipped": (replace(points[0], mean_kld=math.inf), *points[1:]), "end_to_end": (
            replace(points[0], mean_kld=math.inf),), "quantization": (replace(points[0], mean_kld=0.0),)},
        weight_errors=(replace(report.weight_errors[1], relative=math.inf), report.weight_errors[2]),
    )  # fmt: skip
    reader = Reader(to_html(broken))
    assert "∞" in reader.text
    assert "nan" not in to_html(broken)
    assert "inf," not in to_html(broken)


def test_a_wrong_weight_is_framed() -> None:
    cells = [cell for cell in Reader(to_html(a_failing_report())).attributes("td") if cell.get("class") == "outlier"]
    assert len(cells) == 1
    assert not [cell for cell in Reader(to_html(a_report())).attributes("td") if cell.get("class") == "outlier"]


def test_errors_of_outputs_by_either_name() -> None:
    found = output_errors(
        {
            "blk.3.attn_q.weight": 4e-4,
            "token_embd.weight": 1e-4,
            "model.layers.2.mlp.experts.0.down_proj": 1e-4,
            "model.layers.2.mlp.experts.1.down_proj": 3e-4,
            "lm_head": 9e-4,
            "model.layers.1.self_attn.v_proj": 16e-4,
            "something.else": 1.0,
        }
    )
    assert found == {
        ("q_proj", 3): pytest.approx(0.02),
        ("embed_tokens", None): pytest.approx(0.01),
        ("down_proj", 2): pytest.approx(2e-4**0.5),
        ("lm_head", None): pytest.approx(0.03),
        ("v_proj", 1): pytest.approx(0.04),
    }


def test_several_reports_are_one_page(tmp_path: Path) -> None:
    save_overview(REPORTS, tmp_path / "all.html")
    reader = Reader((tmp_path / "all.html").read_text(encoding="utf-8"))
    assert "Parity of 4 artifacts: 2 pass, 1 fail, 1 not run" in reader.text
    rows = [attributes for name, attributes in reader.elements if name == "tr" and attributes.get("role") == "row"]
    assert len(rows) == 1 + len(REPORTS)
    opened = ["open" in details for details in reader.attributes("details") if details.get("class") == "report"]
    assert opened == [False, False, True, False]
    assert "Size against quality" in reader.text
    labels = [
        attributes for name, attributes in reader.elements if name == "text" and attributes.get("class") == "label"
    ]
    assert len(labels) == 2  # the failing one has no finite number, and one was not run
    save_html(REPORTS[0], tmp_path / "one.html")
    assert "Size against quality" not in (tmp_path / "one.html").read_text(encoding="utf-8")


def test_a_page_of_one_report_is_open() -> None:
    for report in REPORTS:
        folds = Reader(to_overview([report])).attributes("details")
        assert ["open" in fold for fold in folds if fold.get("class") == "report"] == [True]


def legend(page: str) -> dict[str, tuple[str, str]]:
    """Target -> its shape and colour."""
    found = re.findall(r'<svg [^>]*style="--series: var\(--(\w+)\)"><path class="mark" d="(.*?)".*?</svg>(\w+)', page)
    return {target: (shape, colour) for colour, shape, target in found}


def test_targets_are_told_apart_in_the_order_asked_for() -> None:
    names = ["gguf", "onnx", "executorch", "coreml", "a_fifth", "a_sixth"]
    reports = [replace(a_report(), target=name) for name in names]
    styles = legend(to_overview(reports))
    assert list(styles) == names
    assert len({shape for shape, _ in styles.values()}) == len({colour for _, colour in styles.values()}) == 5
    assert styles["a_fifth"] == styles["a_sixth"]  # there are no more shapes
    other = legend(to_overview(reports[::-1], targets=names))
    assert other == styles, "a target looks the same on every page that names the same targets"
    assert list(other) == names[::-1]
    assert legend(to_overview(reports[1:3])) == {"onnx": styles["gguf"], "executorch": styles["onnx"]}
    marks = re.findall(r'<path class="mark" d="([^"]*)"></path></g>', to_overview(reports[1:3], targets=names))
    assert marks == [styles["onnx"][0], styles["executorch"][0]]


def test_an_artifact_without_any_divergence_is_drawn() -> None:
    exact = replace(a_report(), end_to_end=numbers(0.0))
    marks = re.findall(r'<path class="mark" d="[^"]*"></path></g>', to_overview([exact, a_report()]))
    assert len(marks) == 2


def test_labels_of_points_do_not_cover_each_other() -> None:
    """Eight recipes around the same size, each readable."""
    reports = [
        replace(a_report(), recipe=f"q{i}_k_m", size_bytes=5_000_000 + 90_000 * i, end_to_end=numbers(4e-3 + 4e-4 * i))
        for i in range(8)
    ]
    reader = Reader(to_overview(reports))
    boxes = []
    for attributes in reader.attributes("text"):
        if attributes.get("class") == "label":
            x, y = float(attributes["x"]), float(attributes["y"])
            left = x - {"start": 0, "middle": 18, "end": 36}[attributes["text-anchor"]]
            boxes.append((left, y - 8, left + 36, y))
    assert len(boxes) == 8
    overlapping = [
        (a, b) for i, a in enumerate(boxes) for b in boxes[:i]
        if min(a[2], b[2]) - max(a[0], b[0]) > 3 and min(a[3], b[3]) - max(a[1], b[1]) > 3
    ]  # fmt: skip
    assert overlapping == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (0.00483, "0.00483"), (1.43e-12, "1.43\u202f×\u202f10⁻¹²"), (1e-9, "10⁻⁹"),
        (9.999e-4, "10⁻³"), (math.inf, "not finite"), (12.345, "12.3"), (2e-7, "2\u202f×\u202f10⁻⁷"),
    ],
)  # fmt: skip
def test_scientific(value: float | None, text: str) -> None:
    assert scientific(value) == text


def test_percent_never_rounds_to_all() -> None:
    assert percent(1.0) == "100.00\u202f%"
    assert percent(0.99999) == "> 99.99\u202f%"
    assert percent(None) == "–"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_text_stands_out(theme: dict[str, str]) -> None:
    """Contrast of at least 4.5 to 1 (WCAG 2.2, 1.4.3), also in the darkest cell of a heat table."""
    texts = ("ink", "soft", "pass", "fail", "not_run", "link", "shipped", "quantization", "end_to_end")
    for surface in ("paper", "card"):
        for text in texts:
            assert contrast(rgb(theme[text]), rgb(theme[surface])) >= 4.5, (text, surface)
    heat = [float(part) for part in theme["heat"].split()]
    darkest = [0.6 * hot + 0.4 * plain for hot, plain in zip(heat, rgb(theme["paper"]), strict=True)]
    assert contrast(rgb(theme["ink"]), darkest) >= 4.5


def rgb(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def contrast(one: list[float], other: list[float]) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    """WCAG's relative luminance."""
    shares = [value / 255 for value in colour]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_page_of_many_layers_stays_small() -> None:
    big: Report = a_solved_report(layers=64)
    assert len(to_html(big)) < 200_000
