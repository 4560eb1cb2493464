"""Held-out texts by domain and language: enough of each, nothing of what models are calibrated on; and documents."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from importlib import resources
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from qwen3_export.checkpoint.model import load

TEXTS = Path(__file__).parents[2] / "benchmarks" / "texts"
# Characters in a row that two texts may share.
MOST_SHARED = 40


@pytest.fixture(scope="module")
def domains(benchmarks: None) -> ModuleType:
    return importlib.import_module("domains")


def strings(value: Any) -> list[str]:
    """Every string in a JSON document."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for item in inner for text in strings(item)]


def pieces(texts: list[str]) -> set[str]:
    return {text[i : i + MOST_SHARED] for text in texts for i in range(len(text) - MOST_SHARED + 1)}


def test_groups_have_enough_documents(domains: ModuleType) -> None:
    texts = list(domains.read_texts(load("demo")))
    assert len({text.document for text in texts}) == len(texts)
    assert sum(path.stat().st_size for path in TEXTS.iterdir()) < 60_000
    found = domains.groups(texts)
    assert min(map(len, found.values())) >= 4
    assert {"prose", "code", "dialogue, thinking", "dialogue, no thinking", "tool calls"} <= found.keys()
    assert len([name for name in found if name.startswith("prose: ")]) >= 8
    assert {f"code: {language}" for language in ("python", "c", "sql", "json")} <= found.keys()
    assert all(len(text.ids) > 30 for text in texts)
    assert max(Counter(text.language for text in texts).values()) < len(texts) / 3


def test_nothing_is_shared_with_what_is_measured_on() -> None:
    """The sample that exports calibrate on, and the texts of the check."""
    package = resources.files("qwen3_export.data")
    sample = package.joinpath("calibration", "sample.jsonl").read_text(encoding="utf-8").splitlines()
    known = [text for line in sample for text in strings(json.loads(line))]
    known += strings(json.loads(package.joinpath("prompts", "evaluation.json").read_text(encoding="utf-8")))
    held_out = [
        text
        for path in TEXTS.glob("*.jsonl")
        for line in path.read_text(encoding="utf-8").splitlines()
        for text in strings(json.loads(line))
    ]
    assert not pieces(held_out) & pieces(known)


def test_languages_count_alike(domains: ModuleType) -> None:
    texts = [
        domains.Text(domain="prose", language=language, document=f"{language} {i}", ids=[1])
        for language, count in (("en", 6), ("de", 2))
        for i in range(count)
    ]
    before, after = [2.0] * 8, [1.0] * 6 + [2.0] * 2
    found = domains._compared(texts, [before, after], range(8))
    assert (found.before, found.after, found.documents) == (2.0, 1.5, 8)
    assert domains.groups(texts) == {"prose": list(range(8)), "prose: en": list(range(6))}


def test_documents_of_windows(domains: ModuleType, tmp_path: Path) -> None:
    """A window has the last title before its middle; a dialogue is a document of its own."""
    articles = "\n".join(
        f" = {name} = \n\n {name} has facts , and these are {' , '.join(map(str, range(first, first + 90)))} .\n"
        " = = Life = = \n more ."
        for name, first in (("Bo", 100), ("Ada", 400))
    )
    stories = "PREFACE\nfor all\nADVENTURE I. A TALE\n\nI.\n\nOnce there was a man who walked.\n"
    stories += "\nXII. THE LAST ONE'S\n\nThe end."
    files = {"wiki": tmp_path / "wiki.txt", "book": tmp_path / "book.txt"}
    files["wiki"].write_text(articles)
    files["book"].write_text(stories)
    found = domains.documents_of(
        {
            "wiki": [[*map(ord, articles[i : i + 60])] for i in range(0, len(articles) - 59, 60)],
            "book": [[*map(ord, "was a man who walked.\n\n")], [*map(ord, "Once there was a man who")]],
            "chat": [[1], [2]],
        },
        SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))),
        files,
    )
    half = articles.index(" = Ada") // 60
    assert set(found["wiki"][: half - 1]) == {"1 = Bo ="}
    assert set(found["wiki"][half + 1 :]) == {"2 = Ada ="}
    assert found["book"] == ["1 ADVENTURE I. A TALE"] * 2
    assert found["chat"] == ["0", "1"]
    titles = [title for _, title in importlib.import_module("window_documents").titles_in(stories)]
    assert titles == ["", "ADVENTURE I. A TALE", "XII. THE LAST ONE'S"]
    with pytest.raises(ValueError, match="not in its source's file"):
        domains.documents_of(
            {"book": [[*map(ord, "quite another text than that")]]},
            SimpleNamespace(tokenizer=SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))),
            files,
        )
