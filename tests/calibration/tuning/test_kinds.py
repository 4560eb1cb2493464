"""Replies with a thought are told from replies without one, by the tokens of the chat template."""

from __future__ import annotations

import numpy as np
import pytest
from models import DEMO

from qwen3_export.calibration.tuning.kinds import KINDS, kinds_of, read_markers
from qwen3_export.checkpoint.model import load
from qwen3_export.checkpoint.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load(str(DEMO)).tokenizer


def spans(tokenizer: Tokenizer, *parts: tuple[str, str]) -> None:
    """Each part, a text and its kind, one after the other."""
    tokens, wanted = [], []
    for text, kind in parts:
        found = tokenizer.encode(text)
        tokens += found
        wanted += [KINDS.index(kind)] * len(found)
    np.testing.assert_array_equal(kinds_of(np.array(tokens), read_markers(tokenizer)), wanted)


def test_kinds_of_turns(tokenizer: Tokenizer) -> None:
    spans(
        tokenizer,
        ("It rained. <|im_start|>user\nHow much is 2 + 2?<|im_end|>\n", "text"),
        ("<|im_start|>assistant\n<think>\nTwo and two are four.\n</think>\n\n4<|im_end|>\n", "thinking"),
        ("<|im_start|>user\nAnd 3 + 3?<|im_end|>\n", "text"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n6<|im_end|>\n", "non-thinking"),
        ("<|im_start|>system\nBe brief.<|im_end|>\n", "text"),
        ("<|im_start|>assistant\nYes.<|im_end|>", "non-thinking"),
    )


def test_a_thought_that_is_cut_off(tokenizer: Tokenizer) -> None:
    spans(tokenizer, ("<|im_start|>assistant\n<think>\nHere I must", "thinking"))
    spans(tokenizer, ("so it is four.</think>\n\nFour<|im_end|>\n", "thinking"), ("<|im_start|>user\nWhy?", "text"))
    spans(tokenizer, ("\n</think>\n\nFour<|im_end|>\n", "text"), ("<|im_start|>user\nWhy?", "text"))
