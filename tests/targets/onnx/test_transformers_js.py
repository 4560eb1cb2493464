"""Folders in transformers.js, in Node and in headless Chromium: greedy tokens are the reference's.

``npm ci`` in ``browser`` beside this file installs what these tests need; Debian's chromium is the browser. The device
there is the default one, WebAssembly; nothing here runs on WebGPU.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from greedy import NEAR_TIE, assert_greedy

from qwen3_export.targets.onnx.read import open_onnx, read_graph
from qwen3_export.targets.onnx.versions import find_needs, oldest_javascript

BROWSER = Path(__file__).parent / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
JS = {"flavour": "transformers.js"}
NEW_TOKENS = 12
TIMEOUT = 1200

# Recipe, its name in transformers.js, options, and how far from the best a token's logit may be.
Case = tuple[str, str, dict[str, Any], float]
MIXTURES: list[Case] = [("fp32", "fp32", {}, 1e-3), ("int4", "q4", {"asymmetric": True}, NEAR_TIE)]
CASES: list[Case] = [
    ("fp32", "fp32", {}, 1e-3),
    ("fp16", "fp16", {}, 0.05),
    ("int8", "q8", {}, NEAR_TIE),
    ("int4", "q4", {}, NEAR_TIE),
    ("int4", "q4", {"asymmetric": True}, NEAR_TIE),
    ("int4_int8", "q4", {}, NEAR_TIE),
    ("int4_fp16", "q4f16", {}, 0.6),
]
QUESTIONS = (
    "Tell me about the sea.",
    "Hi",
    "The quick brown fox jumps over the lazy dog. " * 3 + "Spell cat backwards.",
)


@pytest.fixture(scope="module")
def modules() -> Path:
    """The folder of scripts, with its packages installed."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (BROWSER / "node_modules" / "transformers-4").exists():
        pytest.skip("transformers.js is not installed (npm ci in tests/targets/onnx/browser)")
    return BROWSER


def jobs(
    exported: Callable[..., Any], cases: Sequence[Case], questions: Sequence[str], count: int, variant: str = "demo"
) -> list[dict[str, Any]]:
    found = []
    for recipe, dtype, options, _ in cases:
        written = exported(variant, recipe, **JS, **options)
        prompts = [written.model.tokenizer.render([{"role": "user", "content": text}]) for text in questions]
        found.append({"path": str(written.folder), "dtype": dtype, "prompts": prompts, "count": count})
    return found


def run(script: str, *arguments: str, jobs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a script prints for each job."""
    command = ["node", str(BROWSER / script), *arguments, json.dumps(jobs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def assert_all_greedy(
    exported: Callable[..., Any],
    cases: Sequence[Case],
    results: Sequence[Any],
    questions: Sequence[str],
    variant: str = "demo",
) -> None:
    for (recipe, _, options, tolerance), rows in zip(cases, results, strict=True):
        assert isinstance(rows, list), (recipe, options, rows)
        written = exported(variant, recipe, **JS, **options)
        tokenizer = written.model.tokenizer
        graph = read_graph(open_onnx(written.folder), written.model.graph)
        assert len(rows) == len(questions)
        for text, row in zip(questions, rows, strict=True):
            assert row["given"] == tokenizer.encode(tokenizer.render([{"role": "user", "content": text}]))
            ends = [i for i, token in enumerate(row["made"]) if token in tokenizer.generation.eos_token_ids]
            made = row["made"][: ends[0] + 1] if ends else row["made"]  # a finished row of a batch is padded
            assert_greedy(graph, row["given"], made, tolerance=tolerance)


def is_for(exported: Callable[..., Any], case: Case, release: str) -> bool:
    """Whether ``versions.py`` promises a case for this release."""
    recipe, _, options, _ = case
    proto = open_onnx(exported("demo", recipe, **JS, **options).folder).proto
    return oldest_javascript(find_needs(proto.graph)) == release


def test_node(exported: Callable[..., Any], modules: Path) -> None:
    """A batch of three prompts of different lengths."""
    results = run("node.mjs", "4", jobs=jobs(exported, CASES, QUESTIONS, NEW_TOKENS))
    assert_all_greedy(exported, CASES, results, QUESTIONS)


def test_node_with_the_oldest_release(exported: Callable[..., Any], modules: Path) -> None:
    """fp16 in transformers.js 3.8, which took fp16 logits for whole numbers in a Node without Float16Array."""
    cases = [case for case in CASES if case[1].endswith("16")]
    results = run("node.mjs", "3", jobs=jobs(exported, cases, QUESTIONS, NEW_TOKENS // 2))
    assert_all_greedy(exported, cases, results, QUESTIONS)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium(exported: Callable[..., Any], modules: Path) -> None:
    """The same batch in a browser, then a mixture of experts."""
    given = jobs(exported, CASES, QUESTIONS, NEW_TOKENS) + jobs(exported, MIXTURES, QUESTIONS, NEW_TOKENS // 2, "moe")
    results = run("browser.mjs", str(CHROMIUM), "4", jobs=given)
    assert_all_greedy(exported, CASES, results[: len(CASES)], QUESTIONS)
    assert_all_greedy(exported, MIXTURES, results[len(CASES) :], QUESTIONS, "moe")


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium_with_the_oldest_release(exported: Callable[..., Any], modules: Path) -> None:
    """transformers.js 3.8 loads what it is promised for, and nothing else; once for each number type."""
    cases = list({case[1]: case for case in reversed(CASES)}.values())
    results = run("browser.mjs", str(CHROMIUM), "3", jobs=jobs(exported, cases, QUESTIONS, NEW_TOKENS // 2))
    found = [(case, result, is_for(exported, case, "3.8")) for case, result in zip(cases, results, strict=True)]
    loaded = [(case, result) for case, result, is_promised in found if is_promised]
    assert_all_greedy(exported, [case for case, _ in loaded], [result for _, result in loaded], QUESTIONS)
    refused = {case[1]: result for case, result, is_promised in found if not is_promised}
    assert refused.keys() == {"q8"}
    assert refused["q8"]["error"].isdecimal(), refused  # no words: the address of a C++ exception
