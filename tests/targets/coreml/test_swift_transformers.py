"""swift-transformers' calls, played to the executor: the whole prompt, then one token a call, with its masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tokens import random_tokens

from qwen3_export.errors import CheckpointError
from qwen3_export.reference.model import logits
from qwen3_export.targets.coreml.lint import lint_coreml
from qwen3_export.targets.coreml.mil.package import Package
from qwen3_export.targets.coreml.read import open_coreml, read_graph

PROMPT, NEW = 19, 12
BLOCKED = -np.finfo(np.float16).max


class StatefulModel:
    """What LanguageModelWithStatefulKVCache does at each call (Sources/Models/LanguageModel.swift).

    ``knows_full_mask`` is pull request 331, which is in no release up to 1.3.3.
    """

    def __init__(self, package: Package, *, mode: Any, knows_full_mask: bool = False) -> None:
        self.package, self.mode, self.knows_full_mask = package, mode, knows_full_mask
        assert {"keyCache", "valueCache"} <= set(package.states)
        (low, high) = package.inputs["inputIds"].ranges[-1]
        assert high is not None
        assert high - low > 1  # "Expecting ranged query sequence length."
        self.state, self.is_extending = package.new_state(), False

    def predict_next_token_scores(self, tokens: list[int]) -> np.ndarray:
        ids = tokens[-1:] if self.is_extending else tokens
        self.is_extending = True
        inputs: dict[str, np.ndarray] = {"inputIds": np.array([ids], np.int32)}
        for name in ("attentionMask", "causalMask"):
            if name in self.package.inputs:
                inputs[name] = np.zeros((1, 1, 1, len(tokens) + 1), np.float16)
        if self.knows_full_mask and "fullAttentionMask" in self.package.inputs:
            past = np.arange(len(tokens) - len(ids), len(tokens))
            is_later = np.arange(len(tokens))[None] > past[:, None]
            inputs["fullAttentionMask"] = np.where(is_later, BLOCKED, 0).astype(np.float16)[None, None]
        scores = self.package.run(inputs, state=self.state, mode=self.mode)["logits"]
        assert scores.ndim == 3
        return scores[0, len(ids) - 1]

    def greedy(self, prompt: list[int], count: int) -> Iterator[np.ndarray]:
        tokens = list(prompt)
        for _ in range(count):
            scores = self.predict_next_token_scores(tokens)
            tokens.append(int(scores.argmax()))
            yield scores


RELEASES = [("attentionMask", False), ("attentionMask", True), ("fullAttentionMask", True)]


@pytest.mark.parametrize(("mask", "knows_full_mask"), RELEASES)
@pytest.mark.parametrize(("recipe", "mode", "bound"), [("fp32", "exact", 5e-5), ("int8", "fp16", 0.05)])
def test_every_release_generates_the_reference_s_tokens(
    packaged: Callable[..., Any], mask: str, knows_full_mask: bool, recipe: str, mode: str, bound: float
) -> None:
    written = packaged("untied", recipe, **({} if mask == "attentionMask" else {"mask": mask}))
    graph = read_graph(open_coreml(written.folder), written.model.graph)
    model = StatefulModel(written.open(), mode=mode, knows_full_mask=knows_full_mask)
    tokens = random_tokens(PROMPT).tolist()
    found = list(model.greedy(tokens, NEW))
    tokens += [int(scores.argmax()) for scores in found]
    expected = logits(graph, torch.tensor(tokens))[PROMPT - 1 : -1]
    assert np.abs(np.stack(found).astype(np.float32) - expected.numpy()).max() < bound


def test_the_released_library_cannot_fill_the_other_mask_and_lint_says_so(packaged: Callable[..., Any]) -> None:
    written = packaged("untied", "fp32", mask="fullAttentionMask")
    model = StatefulModel(written.open(), mode="exact")
    with pytest.raises(CheckpointError, match="the input fullAttentionMask is missing"):
        model.predict_next_token_scores([1, 2, 3])
    findings = list(lint_coreml(written.folder, written.model.graph, written.model.tokenizer))
    assert [finding.is_error for finding in findings] == [True]
    assert "fullAttentionMask" in findings[0].text
    sound = packaged("untied", "fp32")
    assert not list(lint_coreml(sound.folder, sound.model.graph, sound.model.tokenizer))


def test_what_the_mask_holds_is_added(packaged: Callable[..., Any]) -> None:
    """Columns that an app hides stay hidden from every token, and what it adds is added."""
    tokens = random_tokens(12)
    columns = np.zeros(12, np.float32)
    columns[:3], columns[5] = BLOCKED, -0.75
    is_later = np.triu(np.ones((12, 12)), 1) > 0
    full = np.where(is_later, BLOCKED, columns[None])
    outputs = {}
    for mask, values in (("attentionMask", [*columns, 0.0]), ("fullAttentionMask", full)):
        package = packaged("untied", "fp32", **({} if mask == "attentionMask" else {"mask": mask})).open()
        given = np.atleast_2d(np.array(values, np.float16))[None, None]
        inputs = {"inputIds": tokens.numpy().astype(np.int32)[None], mask: given}
        outputs[mask] = package.run(inputs, state=package.new_state())["logits"][0, 3:]
    np.testing.assert_allclose(outputs["attentionMask"], outputs["fullAttentionMask"], atol=5e-5)


def test_a_causal_mask_for_the_wrong_input_is_refused_by_its_shape(packaged: Callable[..., Any]) -> None:
    """An app that gives [1, 1, n, n] gets an error at its first call, not another model."""
    package = packaged("untied", "fp32").open()
    for count in (1, 7):
        inputs = {
            "inputIds": np.ones((1, count), np.int32),
            "attentionMask": np.zeros((1, 1, count, count), np.float16),
        }
        with pytest.raises(CheckpointError, match="attentionMask is float16"):
            package.run(inputs, state=package.new_state())


def test_the_context_is_full_to_its_last_position(packaged: Callable[..., Any]) -> None:
    written = packaged("rows_of_72", "fp32", context_length=100)
    graph = read_graph(open_coreml(written.folder), written.model.graph)
    tokens = random_tokens(97).tolist()
    found = list(StatefulModel(written.open(), mode="exact").greedy(tokens, 4))
    tokens += [int(scores.argmax()) for scores in found]
    expected = logits(graph, torch.tensor(tokens[:-1]))[96:]
    assert np.abs(np.stack(found) - expected.numpy()).max() < 5e-5
