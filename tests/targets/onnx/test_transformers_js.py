"""Folders in transformers.js, in Node and in headless Chromium: greedy tokens are the reference's.

``npm ci`` in ``browser`` beside this file installs what these tests need; Debian's chromium is the browser. WebGPU runs
on SwiftShader, a GPU in software, whose attention is right for less than 32 tokens.
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

BROWSER = Path(__file__).parent / "browser"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
JS = {"flavour": "transformers.js"}
NEW_TOKENS = 12
TIMEOUT = 1200

# Recipe, its name in transformers.js, options, and how far from the best a token's logit may be.
CASES: list[tuple[str, str, dict[str, Any], float]] = [
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


def jobs(exported: Callable[..., Any], questions: Sequence[str], device: str, count: int) -> list[dict[str, Any]]:
    found = []
    for recipe, dtype, options, _ in CASES:
        written = exported("demo", recipe, **JS, **options)
        prompts = [written.model.tokenizer.render([{"role": "user", "content": text}]) for text in questions]
        job = {"path": str(written.folder), "dtype": dtype, "device": device, "prompts": prompts, "count": count}
        found.append(job)
    return found


def run(script: str, *arguments: str, jobs: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What a script prints for each job."""
    command = ["node", str(BROWSER / script), *arguments, json.dumps(jobs)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return results


def assert_all_greedy(exported: Callable[..., Any], results: Sequence[Any], questions: Sequence[str]) -> None:
    for (recipe, _, options, tolerance), rows in zip(CASES, results, strict=True):
        assert isinstance(rows, list), (recipe, options, rows)
        written = exported("demo", recipe, **JS, **options)
        tokenizer = written.model.tokenizer
        graph = read_graph(open_onnx(written.folder), written.model.graph)
        assert len(rows) == len(questions)
        for text, row in zip(questions, rows, strict=True):
            assert row["given"] == tokenizer.encode(tokenizer.render([{"role": "user", "content": text}]))
            ends = [i for i, token in enumerate(row["made"]) if token in tokenizer.generation.eos_token_ids]
            made = row["made"][: ends[0] + 1] if ends else row["made"]  # a finished row of a batch is padded
            assert_greedy(graph, row["given"], made, tolerance=tolerance)


def test_node(exported: Callable[..., Any], modules: Path) -> None:
    """A batch of three prompts of different lengths."""
    results = run("node.mjs", "4", jobs=jobs(exported, QUESTIONS, "cpu", NEW_TOKENS))
    assert_all_greedy(exported, results, QUESTIONS)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_chromium(exported: Callable[..., Any], modules: Path) -> None:
    """The same batch on the default device, WebAssembly."""
    results = run("browser.mjs", str(CHROMIUM), "4", jobs=jobs(exported, QUESTIONS, "wasm", NEW_TOKENS))
    assert_all_greedy(exported, results, QUESTIONS)
