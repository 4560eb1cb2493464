"""The reference computes what transformers computes, for every kind of checkpoint and every way of feeding it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import DEMO
from tokens import random_tokens, settled_tokens
from torch import Tensor

from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.graph import Graph
from qwen3_export.reference.model import KVCache, Place, Site, forward, head_logits, logits

transformers = pytest.importorskip("transformers")

PARITY = 1e-4  # both are fp32; sums taken in another order differ by some 1e-6 on logits of 5
CACHED = 1e-4  # the same, between one prefill and chunks: matrix products of other sizes

TEXT = (
    "It was late in the evening when the two friends came back to the house by the river. The door stood "
    "open, and there was a light in the upper window. 'Somebody has been here before us,' said the elder.\n\n"
    "def total(values):\n    return sum(value for value in values if value > 0)\n"
)


def test_prefill_equals_transformers(any_model: Path) -> None:
    graph = open_checkpoint(any_model)
    tokens_T = settled_tokens(graph, 130)
    assert_close(logits(graph, tokens_T), transformers_output(any_model, tokens_T).logits[0], PARITY)


def test_chunks_equal_prefill(any_model: Path) -> None:
    graph = open_checkpoint(any_model)
    tokens_T = settled_tokens(graph, 97)
    cache = KVCache()
    chunks = [logits(graph, part, cache=cache) for part in torch.split(tokens_T, [1, 40, 7, 49])]
    assert cache.length == 97
    assert_close(torch.cat(chunks), logits(graph, tokens_T), CACHED)


def test_token_by_token_equals_prefill(any_model: Path) -> None:
    graph = open_checkpoint(any_model)
    tokens_T = settled_tokens(graph, 12)
    cache = KVCache()
    steps = [logits(graph, token, cache=cache) for token in torch.split(tokens_T, 1)]
    assert_close(torch.cat(steps), logits(graph, tokens_T), CACHED)


def test_hidden_states_equal_transformers(any_model: Path) -> None:
    graph = open_checkpoint(any_model)
    tokens_T = settled_tokens(graph, 40)
    expected = transformers_output(any_model, tokens_T).hidden_states
    seen: dict[Site, Tensor] = {}
    forward(graph, [tokens_T], observe=lambda site, _, state: seen.update({site: state}))
    last = graph.config.num_hidden_layers - 1
    ours = [seen[Site(Place.INPUT, 0)], *(seen[Site(Place.OUTPUT, layer)] for layer in range(last))]
    for mine, theirs in zip([*ours, seen[Site(Place.FINAL)]], expected, strict=True):
        assert_close(mine, theirs[0], PARITY)


def test_demo_on_real_text(demo_graph: Graph) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokens_T = torch.tensor(tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(TEXT).ids)
    logits_TV = logits(demo_graph, tokens_T)
    assert_close(logits_TV, transformers_output(DEMO, tokens_T).logits[0], PARITY)
    loss = torch.nn.functional.cross_entropy(logits_TV[:-1], tokens_T[1:])
    assert loss < 4.5  # trained to 2.9 nats a token; a guess among 8192 costs 9.0


def test_sequences_do_not_see_each_other(model_graph: Callable[[str], Graph]) -> None:
    for name in ("tied", "moe"):
        graph = model_graph(name)
        sequences = torch.split(settled_tokens(graph, 37), [5, 31, 1])
        together = forward(graph, sequences)
        for tokens_T, hidden_TD in zip(sequences, together, strict=True):
            assert_close(hidden_TD, forward(graph, [tokens_T])[0], CACHED)


def test_head_in_blocks_equals_head_at_once(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("untied")
    (hidden_TD,) = forward(graph, [random_tokens(9)])
    whole_TV = head_logits(graph, hidden_TD, rows_per_block=8192)
    assert_close(head_logits(graph, hidden_TD, rows_per_block=1000), whole_TV, CACHED)


def test_storage_changes_nothing(model_graph: Callable[[str], Graph]) -> None:
    tokens_T = random_tokens(20)
    for same in (("tied", "duplicate_head", "sharded", "new_spelling"), ("moe", "moe_fused", "moe_sharded")):
        first, *others = (logits(model_graph(name), tokens_T) for name in same)
        assert all(torch.equal(first, other) for other in others)


def test_impossible_sequences_are_refused(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    with pytest.raises(ValueError, match="not empty"):
        forward(graph, [torch.empty(0, dtype=torch.int64)])
    with pytest.raises(ValueError, match="vocabulary of 8192"):
        forward(graph, [torch.tensor([5, 8192])])
    with pytest.raises(ValueError, match="2 sequences"):
        forward(graph, [random_tokens(2), random_tokens(2)], caches=[KVCache()])


def transformers_output(folder: Path, tokens_T: Tensor) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(tokens_T[None], output_hidden_states=True)


def assert_close(ours: Tensor, theirs: Tensor, bound: float) -> None:
    assert ours.shape == theirs.shape
    difference = (ours - theirs).abs().max().item()
    assert difference < bound, f"maximum difference {difference:.3g}"
