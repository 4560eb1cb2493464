"""Prompts of different lengths in one call of the transformers.js flavour, which pads on the left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from qwen3_export.targets.onnx import check
from qwen3_export.targets.onnx.lint import lint_onnx
from qwen3_export.targets.onnx.run import OnnxSession

JS = {"flavour": "transformers.js"}
NEW_TOKENS = 12


def session(written: Any) -> OnnxSession:
    return OnnxSession(written.folder / written.export.graph_file, written.model.graph.config)


def prompts(written: Any) -> list[list[int]]:
    encode = written.model.tokenizer.encode
    long = encode("The quick brown fox jumps over the lazy dog, and then it rests for a while.")
    return [encode("The sea is"), long, encode("Hi")]


def greedy(given: OnnxSession, texts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    """Generate as optimum does: left padding, positions from the mask, one cache for the whole batch."""
    longest = max(map(len, texts))
    ids = np.array([[0] * (longest - len(text)) + list(text) for text in texts], np.int64)
    mask = np.array([[0] * (longest - len(text)) + [1] * len(text) for text in texts], np.int64)
    caches: Any = given._empty_caches(len(texts))
    made: list[list[int]] = [[] for _ in texts]
    for _ in range(count):
        positions = np.where(mask == 1, mask.cumsum(axis=1) - 1, 1)[:, -ids.shape[1] :]
        found = given._call(ids, mask, positions, caches)
        caches = given._next_caches(found)
        ids = found["logits"][:, -1].argmax(axis=-1)[:, None].astype(np.int64)
        mask = np.concatenate((mask, np.ones_like(ids)), axis=1)
        for row, token in zip(made, ids[:, 0], strict=True):
            row.append(int(token))
    return made


@pytest.mark.parametrize(
    ("variant", "recipe", "tolerance"),
    [("demo", "fp32", 1e-3), ("demo", "fp16", 0.05), ("yarn", "int4", 1e-2), ("moe", "fp32", 1e-3)],
)
def test_a_batch_of_three_is_three_texts(
    exported: Callable[..., Any], variant: str, recipe: str, tolerance: float
) -> None:
    written = exported(variant, recipe, **JS)
    runtime = session(written)
    texts = [[*text, *range(300, 306)] for text in prompts(written)]
    for side in ("left", "right"):
        found = runtime.padded_logits(texts, side=side, steps=5)
        for text, logits in zip(texts, found, strict=True):
            np.testing.assert_allclose(logits, runtime.logits(text), atol=tolerance, rtol=0)


def test_generated_text_is_that_of_each_prompt_alone(exported: Callable[..., Any]) -> None:
    written = exported("demo", "fp32", **JS)
    runtime, texts = session(written), prompts(written)
    assert greedy(runtime, texts, NEW_TOKENS) == [greedy(runtime, [text], NEW_TOKENS)[0] for text in texts]


def test_padding_may_be_anywhere(exported: Callable[..., Any]) -> None:
    written = exported("tied", "fp32", **JS)
    runtime, text = session(written), [5, 900, 17, 2100, 44]
    mask = np.array([[0, 1, 1, 0, 1, 0, 1, 1]], np.int64)
    ids = np.zeros_like(mask)
    ids[mask == 1] = text
    positions = np.where(mask == 1, mask.cumsum(axis=1) - 1, 1)
    found = runtime._call(ids, mask, positions, runtime._empty_caches(1))["logits"]
    np.testing.assert_allclose(found[mask == 1], runtime.logits(text), atol=1e-4)


def unordered(proto: Any) -> None:
    """The graph as it would be without ``padding.py``: tokens stay where they are."""
    renamed = {"tokens": "input_ids", "positions": "position_ids"}
    final = next(node for node in proto.graph.node if node.op_type == "GatherND")
    renamed[final.output[0]] = final.input[0]
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
    kept = [node for node in proto.graph.node if not any(name.startswith("order.") for name in node.output)]
    kept = [node for node in kept if node is not final and node.output[0] not in ("tokens", "positions")]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)


def test_a_graph_that_is_wrong_for_it_is_told(
    check_edited: Callable[..., Any], lint_edited: Callable[..., Any]
) -> None:
    report = check_edited(unordered, variant="tied", recipe="fp32", **JS)
    assert report.decode.status == "fail"
    told = [finding.text for finding in lint_edited(unordered, variant="tied", recipe="fp32", **JS)]
    assert any("prompts of different lengths" in text for text in told)


def test_the_other_flavour_promises_the_right_alone(exported: Callable[..., Any]) -> None:
    from qwen3_export.targets.onnx.read import open_onnx

    assert check._padded_sides(open_onnx(exported("tied", "fp32").folder)) == ("right",)
    assert check._padded_sides(open_onnx(exported("tied", "fp32", **JS).folder)) == ("right", "left")


def test_lint_finds_nothing_in_ours(exported: Callable[..., Any]) -> None:
    for recipe in ("int4", "int4_fp16", "fp16"):
        written = exported("tied", recipe, **JS)
        graph, tokenizer = written.model.graph, written.model.tokenizer
        found = lint_onnx(written.folder, graph, tokenizer, consumers=("transformers.js",))
        assert [finding.text for finding in found] == []
