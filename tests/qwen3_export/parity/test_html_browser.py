"""The page in a real browser: nothing overflows a phone, light and dark differ, nothing is fetched.

Needs Chromium; without it these tests are skipped, and ``test_html`` holds what can be held without.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from reports import a_failing_report, a_report, a_solved_report, an_unrun_report

from qwen3_export.parity.html import to_html, to_overview

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-device-scale-factor=1")
# As Chromium's own setting numbers them
SCHEMES = {"dark": 0, "light": 1}
WIDTHS = (320, 360, 390, 768, 1280)

LAYERS = 36
PAGES = {
    "passing": to_html(a_solved_report(layers=LAYERS)),
    "failing": to_html(a_failing_report(layers=LAYERS)),
    "several": to_overview([a_report(), a_solved_report(), a_failing_report(), an_unrun_report()]),
}

# Every page in a frame of every width, all that is folded unfolded; what a page shows is measured from outside, for its
# own policy lets no script run in it. Of an element that scrolls in its own frame, only the frame counts.
MEASURE = """
function measure(frame) {
  const page = frame.contentDocument, root = page.documentElement, width = frame.clientWidth;
  page.querySelectorAll('details').forEach(details => details.open = true);
  const tooWide = [...page.body.querySelectorAll('*')].filter(
    element => !element.parentElement.closest('.wide, svg') && element.getBoundingClientRect().right > width + 0.5);
  const scrolling = [...page.querySelectorAll('.wide')].filter(frame => frame.scrollWidth > frame.clientWidth + 1);
  const text = page.querySelector('svg text').getBoundingClientRect();
  const found = {page: frame.dataset.page, width, overflow: root.scrollWidth - width,
    tooWide: tooWide.map(element => element.outerHTML.slice(0, 120)),
    scrolling: scrolling.map(frame => frame.innerText.slice(0, 40)),
    textHeight: text.height, fetched: frame.contentWindow.performance.getEntriesByType('resource').length};
  const line = document.createElement('pre');
  line.textContent = JSON.stringify(found);
  document.body.append(line);
}
"""


def chromium(folder: Path, *arguments: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder / 'profile'}", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    folder = tmp_path_factory.mktemp("measured")
    frames = "".join(
        f'<iframe onload="measure(this)" data-page="{name}" width="{width}" height="900" style="border: 0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in PAGES.items()
        for width in WIDTHS
    )
    (folder / "measure.html").write_text(f"<!doctype html><script>{MEASURE}</script><body>{frames}", encoding="utf-8")
    return measurements(folder, folder / "measure.html")


def measurements(folder: Path, path: Path) -> list[dict[str, object]]:
    """What a page with ``MEASURE`` in it has written below its frames."""
    document = chromium(folder, "--dump-dom", path.as_uri())
    return [json.loads(html.unescape(line)) for line in re.findall(r"<pre>(\{.*?\})</pre>", document)]


def test_nothing_overflows(measured: list[dict[str, object]]) -> None:
    assert {(found["page"], found["width"]) for found in measured} == {(p, w) for p in PAGES for w in WIDTHS}
    assert [found for found in measured if found["overflow"] or found["tooWide"]] == []


def test_no_table_needs_scrolling_on_a_usual_phone(measured: list[dict[str, object]]) -> None:
    assert [found for found in measured if found["width"] >= 360 and found["scrolling"]] == []


def test_text_in_pictures_can_be_read(measured: list[dict[str, object]]) -> None:
    assert min(found["textHeight"] for found in measured if found["width"] >= 360) >= 10


def test_nothing_is_fetched(measured: list[dict[str, object]]) -> None:
    assert [found for found in measured if found["fetched"]] == []


def test_a_measure_that_can_fail(tmp_path: Path) -> None:
    """What is too wide is found."""
    wide = PAGES["passing"].replace("<main>", '<main><p style="width: 500px; max-width: none">wide</p>')
    frame = f'<iframe onload="measure(this)" width="360" srcdoc="{html.escape(wide)}"></iframe>'
    (tmp_path / "wide.html").write_text(f"<!doctype html><script>{MEASURE}</script><body>{frame}", encoding="utf-8")
    (found,) = measurements(tmp_path, tmp_path / "wide.html")
    assert found["overflow"] > 100
    assert any("width: 500px" in element for element in found["tooWide"])


@pytest.mark.parametrize("size", ["390,844", "1280,900"])
def test_screenshots_in_both_themes(size: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGES["failing"], encoding="utf-8")
    pictures = {}
    for scheme, number in SCHEMES.items():
        picture = tmp_path / f"{scheme}.png"
        chromium(
            tmp_path,
            f"--window-size={size}",
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={picture}",
            (tmp_path / "page.html").as_uri(),
        )
        pictures[scheme] = picture.read_bytes()
        assert struct.unpack(">II", pictures[scheme][16:24]) == tuple(map(int, size.split(",")))
        assert len(pictures[scheme]) > 10_000  # an empty page packs into two thousand bytes
    assert pictures["light"] != pictures["dark"]
