"""The runtimes that apps use: onnxruntime-genai, and transformers.js under Node, generate what the reference does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen3_export.graph import Graph
from qwen3_export.reference.model import logits
from qwen3_export.targets.onnx.read import open_onnx, read_graph

QUESTION = [{"role": "user", "content": "Tell me about the sea."}]
NEW_TOKENS = 24

# Two tokens whose logits are nearer than int8 activations move them are both right.
NEAR_TIE = 0.4

JS_FOLDER = "QWEN3_EXPORT_TRANSFORMERS_JS"
SCRIPT = """
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';
const found = createRequire(process.argv[2] + '/package.json').resolve('@huggingface/transformers');
const { env, AutoTokenizer, AutoModelForCausalLM } = await import(pathToFileURL(found));
env.allowRemoteModels = false;
env.localModelPath = process.argv[3];
const [name, dtype, prompt, count] = process.argv.slice(4);
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, { dtype, device: 'cpu' });
const inputs = tokenizer(prompt, { add_special_tokens: false });
const out = await model.generate({ ...inputs, max_new_tokens: Number(count), do_sample: false });
console.log(JSON.stringify({ given: inputs.input_ids.tolist()[0].map(Number), all: out.tolist()[0].map(Number) }));
"""


def assert_greedy(graph: Graph, given: Sequence[int], made: Sequence[int], *, tolerance: float) -> None:
    """Every token is the reference's best after what came before, or as good as that."""
    assert made
    rows = logits(graph, torch.tensor([*given, *made[:-1]]))[len(given) - 1 :]
    for row, token in zip(rows, made, strict=True):
        assert float(row.max() - row[token]) <= tolerance


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


@pytest.mark.parametrize(("recipe", "dtype", "tolerance"), [("int4", "q4", NEAR_TIE), ("int4_fp16", "q4f16", 0.6)])
def test_transformers_js(
    exported: Callable[..., Any], tmp_path: Path, recipe: str, dtype: str, tolerance: float
) -> None:
    modules = os.environ.get(JS_FOLDER)
    if shutil.which("node") is None or modules is None:
        pytest.skip(f"needs node, and {JS_FOLDER}: a folder in which @huggingface/transformers is installed")
    written = exported("demo", recipe, flavour="transformers.js")
    script = tmp_path / "generate.mjs"
    script.write_text(SCRIPT)
    prompt = written.model.tokenizer.render(QUESTION)
    folder = written.folder
    command = ["node", script, modules, folder.parent, folder.name, dtype, prompt, str(NEW_TOKENS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["given"] == written.model.tokenizer.encode(prompt)
    made = found["all"][len(found["given"]) :]
    graph = read_graph(open_onnx(folder), written.model.graph)
    assert_greedy(graph, found["given"], made, tolerance=tolerance)
