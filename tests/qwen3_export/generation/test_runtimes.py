"""Every target's runtime generates the reference's tokens, through its own caches."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
from models import DEMO

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CheckpointError, ExportError
from qwen3_export.generation.dialogue import open_dialogue
from qwen3_export.generation.generate import Generation
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.reference import held, open_checkpoint, reference_runtime
from qwen3_export.generation.sampling import GREEDY, Sampler
from qwen3_export.generation.stepper import Runtime
from qwen3_export.generation.thinking import EARLY_STOP, Thinking
from qwen3_export.graph import Kind, Role
from qwen3_export.targets.executorch.target import ExecutorchOptions
from qwen3_export.targets.onnx.target import OnnxOptions
from qwen3_export.targets.registry import is_artifact, open_artifact

QUESTIONS = ("What is the opposite of hot?", "Sort these numbers: 34, 56, 10.")


def replies(opener: AbstractContextManager[Opened], runtime: Runtime | None = None) -> list[list[int]]:
    """Greedy replies, whole ones and one whose thought is closed; from another runtime in the same tongue."""
    found = []
    with opener as opened:
        used = runtime or opened.runtime
        for question, budget in ((QUESTIONS[0], None), (QUESTIONS[1], None), (QUESTIONS[0], 3)):
            found.append(_reply(opened, used, question, budget))
    return found


def _reply(opened: Opened, runtime: Runtime, question: str, budget: int | None) -> list[int]:
    speech = opened.speech
    opening = open_dialogue(speech, [{"role": "user", "content": question}])
    tokens = speech.encode(opening.text)
    with runtime.start(200) as stepper:
        generation = Generation(
            stepper,
            tokens,
            sampler=Sampler(GREEDY),
            thinking=Thinking(speech.marks, budget=budget),
            is_end=speech.is_end,
            max_new_tokens=40,
            early_stop=speech.encode(EARLY_STOP),
        )
        found = [step.token for step in generation]
        assert generation.was_cut_short == (budget is not None)
        return found


@pytest.fixture(scope="module")
def model() -> Model:
    return load("demo")


@pytest.fixture(scope="module")
def expected(model: Model) -> list[list[int]]:
    found = replies(open_checkpoint(model))
    assert model.tokenizer.decode(found[0]).endswith("The opposite of hot is cold.")
    assert model.tokenizer.decode(found[2]).startswith("<think>\nThe user\n\nConsidering")
    return found


def test_the_reference_token_by_token_is_the_reference_at_once(model: Model, expected: list[list[int]]) -> None:
    import torch

    from qwen3_export.reference.model import logits

    prompt = model.tokenizer.encode(model.tokenizer.render([{"role": "user", "content": QUESTIONS[0]}]))
    rows = logits(model.graph, torch.tensor([*prompt, *expected[0]]))[len(prompt) - 1 :]
    assert rows.argmax(-1).tolist()[:-1] == expected[0]


def test_values_are_held_unless_there_are_too_many(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = held(model.graph)
    role = Role(Kind.Q_PROJ, 0)
    assert kept[role].read(slice(2, 3)).base is not None
    assert (kept[role].read(slice(2, 4)) == model.graph[role].read(slice(2, 4))).all()
    monkeypatch.setattr("qwen3_export.generation.reference.HELD_BYTES", 1000)
    assert held(model.graph) is model.graph


@pytest.mark.gguf
@pytest.mark.parametrize(("recipe", "length"), [("f32", None), ("q8_0", 16)])
def test_llama_cpp(recipe: str, length: int | None, model: Model, tmp_path: Path) -> None:
    """Of q8_0 the beginnings: llama.cpp's int8 activations may choose another token in the end."""
    pytest.importorskip("llama_cpp")
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.export import prepare
    from qwen3_export.targets.gguf.read import open_gguf, read_graph
    from qwen3_export.targets.gguf.recipes import find_recipe

    path = tmp_path / "m.gguf"
    emit(prepare(model, find_recipe(recipe), out=path).files)
    stored = read_graph(open_gguf(path), model.graph)
    found, expected = replies(open_artifact(path)), replies(open_checkpoint(model), reference_runtime(stored))
    assert [reply[:length] for reply in found] == [reply[:length] for reply in expected]


@pytest.mark.onnx
@pytest.mark.parametrize("flavour", ["genai", "transformers.js"])
def test_onnxruntime(flavour: str, model: Model, expected: list[list[int]], tmp_path: Path) -> None:
    pytest.importorskip("onnx_ir")
    pytest.importorskip("onnxruntime")
    from qwen3_export.targets.onnx.export import prepare, write
    from qwen3_export.targets.onnx.recipes import find_recipe

    write(prepare(model, find_recipe("fp32"), out=tmp_path / "m", options=OnnxOptions(flavour=flavour)))  # type: ignore[arg-type]
    assert replies(open_artifact(tmp_path / "m")) == expected
    (graph,) = (tmp_path / "m").rglob("*.onnx")
    assert replies(open_artifact(graph)) == expected


@pytest.mark.onnx
def test_an_onnx_graph_whose_caches_have_names_for_sizes(
    model: Model, expected: list[list[int]], tmp_path: Path
) -> None:
    """As onnxruntime-genai's builder writes it: genai's config, or the checkpoint, has the numbers."""
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from qwen3_export.targets.onnx.export import prepare, write
    from qwen3_export.targets.onnx.recipes import find_recipe

    folder = tmp_path / "m"
    write(prepare(model, find_recipe("fp32"), out=folder))
    proto = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    for value in proto.graph.input:
        if value.name.startswith("past_key_values."):
            value.type.tensor_type.shape.dim[3].dim_param = "kv_cache_dim"
    onnx.save(proto, str(folder / "model.onnx"))
    assert replies(open_artifact(folder)) == expected
    (folder / "genai_config.json").unlink()
    assert replies(open_artifact(folder, model)) == expected
    with pytest.raises(CheckpointError, match="how large its caches are; name the checkpoint with `model`"):
        replies(open_artifact(folder))


@pytest.mark.coreml
def test_the_mil_executor(model: Model, expected: list[list[int]], tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    from qwen3_export.targets.coreml.export import prepare, write
    from qwen3_export.targets.coreml.recipes import find_recipe

    write(prepare(model, find_recipe("fp32"), out=tmp_path / "m"))
    assert replies(open_artifact(tmp_path / "m")) == expected


@pytest.mark.executorch
def test_executorch(model: Model, tmp_path: Path) -> None:
    """One layer: lowering takes seconds for each; prompts are longer than what one call may take."""
    pytest.importorskip("executorch")
    from qwen3_export.targets.executorch.export import prepare, write
    from qwen3_export.targets.executorch.recipes import find_recipe

    small = replace(model, graph=model.graph.truncated(0, 1))
    write(
        prepare(
            small,
            find_recipe("fp32"),
            out=tmp_path / "m",
            options=ExecutorchOptions(max_seq_len=16, context_length=256),
        )
    )
    with open_artifact(tmp_path / "m") as opened:
        assert opened.runtime.context_length == 256
        assert opened.speech.is_end(8158)
    assert replies_of_one_layer(open_artifact(tmp_path / "m")) == replies_of_one_layer(
        open_checkpoint(model), reference_runtime(small.graph)
    )


@pytest.mark.gguf
def test_every_position_of_the_context_is_used(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    from qwen3_export.generation.generate import Ending
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.export import prepare
    from qwen3_export.targets.gguf.recipes import find_recipe

    emit(prepare(model, find_recipe("q4_0"), out=tmp_path / "m.gguf").files)
    with open_artifact(tmp_path / "m.gguf") as opened, opened.runtime.start(600) as stepper:
        generation = Generation(
            stepper,
            [5] * 590,  # more than is computed at once
            sampler=Sampler(GREEDY),
            thinking=Thinking(None),
            is_end=lambda _token: False,
            max_new_tokens=100,
        )
        assert len(list(generation)) == 11  # the last one need not be fed
        assert generation.ending is Ending.CONTEXT
        assert stepper.room == 0


def replies_of_one_layer(opener: AbstractContextManager[Opened], runtime: Runtime | None = None) -> list[list[int]]:
    """A model that small never opens a thought, nor ends a turn."""
    with opener as opened:
        return [_reply(opened, runtime or opened.runtime, question, None) for question in QUESTIONS]


def test_what_is_an_artifact(tmp_path: Path) -> None:
    assert not is_artifact("demo")
    assert not is_artifact("Qwen/Qwen3-1.7B")
    assert not is_artifact(str(DEMO))
    assert is_artifact("no/such/file.gguf")
    assert is_artifact(str(DEMO / "config.json"))


@pytest.mark.gguf
def test_what_is_no_artifact_is_refused_before_a_runtime_sees_it(tmp_path: Path) -> None:
    (tmp_path / "damaged.gguf").write_bytes(b"GGUF" + bytes(100))
    for path, told, kind in (
        (DEMO / "config.json", "not a GGUF file", ExportError),
        (tmp_path / "none.onnx", "no such file", ExportError),
    ):
        with pytest.raises(kind, match=told), open_artifact(path):
            pass
    pytest.importorskip("llama_cpp")
    with pytest.raises(CheckpointError, match="cannot load it"), open_artifact(tmp_path / "damaged.gguf"):
        pass
