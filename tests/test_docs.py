"""The tests that the documentation names are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)?::(?P<test>test_\w+)`")


def test_cases_name_tests_that_exist() -> None:
    text, file, seen = (ROOT / "docs" / "cases.md").read_text(encoding="utf-8"), "", 0
    for found in NAMED.finditer(text):
        file = found["file"] or file
        assert re.search(rf"^def {found['test']}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE)
        seen += 1
    assert seen > len(re.findall(r"^\| (?!case|-)", text, re.MULTILINE))
