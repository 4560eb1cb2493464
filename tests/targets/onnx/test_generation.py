"""onnxruntime-genai generates what the reference does; transformers.js is tested in ``test_transformers_js.py``."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from greedy import NEAR_TIE, assert_greedy

from qwen3_export.targets.onnx.read import open_onnx, read_graph

QUESTION = [{"role": "user", "content": "Tell me about the sea."}]
NEW_TOKENS = 24


@pytest.mark.parametrize(("recipe", "tolerance"), [("fp32", 1e-3), ("int4", NEAR_TIE), ("fp16", 0.05)])
def test_onnxruntime_genai(exported: Callable[..., Any], recipe: str, tolerance: float) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    written = exported("demo", recipe)
    model = genai.Model(str(written.folder))
    tokenizer = genai.Tokenizer(model)
    ours = written.model.tokenizer
    text = ours.render(QUESTION)
    assert tokenizer.apply_chat_template(messages=json.dumps(QUESTION), add_generation_prompt=True) == text
    given = list(map(int, tokenizer.encode(text)))
    assert given == ours.encode(text)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(given) + NEW_TOKENS, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(given)
    made = []
    while not generator.is_done():
        generator.generate_next_token()
        made.append(int(generator.get_next_tokens()[0]))
    assert made[-1] in ours.generation.eos_token_ids or len(made) == NEW_TOKENS
    assert_greedy(read_graph(open_onnx(written.folder), written.model.graph), given, made, tolerance=tolerance)


def test_genai_runs_a_mixture_of_experts(exported: Callable[..., Any]) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    written = exported("moe", "int4", accuracy_level=1)
    model = genai.Model(str(written.folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=20, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(list(range(100, 110)))
    while not generator.is_done():
        generator.generate_next_token()
    made = list(map(int, generator.get_sequence(0)))
    graph = read_graph(open_onnx(written.folder), written.model.graph)
    assert_greedy(graph, made[:10], made[10:], tolerance=1e-3)
