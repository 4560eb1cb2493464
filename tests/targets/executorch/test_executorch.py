"""Programs through ExecuTorch's own runtime. Lowering takes seconds a layer, so few are made, of one layer."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checks import checked

pytest.importorskip("executorch")

from qwen3_export.calibration.solving import solve
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CheckpointError, OptionError, QuantizationError, UnsupportedModelError
from qwen3_export.graph import Kind, Role, module_name
from qwen3_export.parity.report import Report
from qwen3_export.rope import rotation
from qwen3_export.targets.executorch.export import ExecutorchExport, constant_methods, prepare, with_solution, write
from qwen3_export.targets.executorch.lint import lint_executorch
from qwen3_export.targets.executorch.recipes import find_recipe, untied
from qwen3_export.targets.executorch.run import Program
from qwen3_export.targets.executorch.stored import INDEX, read_index, read_weights
from qwen3_export.targets.executorch.target import ExecutorchOptions

MAX_SEQ_LEN = 96
SHORT = ExecutorchOptions(max_seq_len=MAX_SEQ_LEN)
PIECE = 32
PORTABLE = ExecutorchOptions(max_seq_len=MAX_SEQ_LEN, portable=True)


def one_layer(model: Model) -> Model:
    return replace(model, graph=model.graph.truncated(0, 1))


def written(export: ExecutorchExport) -> ExecutorchExport:
    write(export)
    return export


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory, text: Path) -> ExecutorchExport:
    """The demo's first layer as 8da4w, solved by GPTQ, with an embedding of four bits."""
    model, root = one_layer(load("demo")), tmp_path_factory.mktemp("executorch")
    options = ExecutorchOptions(max_seq_len=MAX_SEQ_LEN, embedding=4, group_size=64)
    export = prepare(model, find_recipe("8da4w"), out=root / "out", options=options)
    windows = read_calibration(text, model.tokenizer, sequence_length=128, num_samples=8)
    solution = solve("gptq", export.model.graph, export.weight_formats, windows, work_dir=root / "work")
    return written(with_solution(export, solution))


@pytest.fixture(scope="module")
def bytes_a_channel(tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path]) -> ExecutorchExport:
    """A random untied layer as 8da8w."""
    out = tmp_path_factory.mktemp("executorch") / "out"
    model = one_layer(load(model_folder("untied")))
    return written(prepare(model, find_recipe("8da8w"), out=out, options=SHORT))


def check(export: ExecutorchExport, model: Model, folder: Path | None = None, **options: Any) -> Report:
    return checked("executorch", folder or export.out, model.graph, model.tokenizer, **options)


def test_solved_codes_arrive_unchanged(solved: ExecutorchExport) -> None:
    stored = read_weights(solved.out / "model.pte", solved.model.graph, read_index(solved.out))
    for weight in solved.graph:
        if hasattr(weight, "encode") and len(weight.shape) == 2:
            codes, params = weight.encode()
            found_codes, found_params = stored.weights[weight.name].encode(slice(None))  # type: ignore[attr-defined]
            np.testing.assert_array_equal(found_codes, codes, err_msg=weight.name)
            np.testing.assert_array_equal(found_params.scale_RG, params.scale_RG)
            np.testing.assert_array_equal(stored.weights[weight.name].read(slice(3, 7)), weight.read(slice(3, 7)))
    index = read_index(solved.out)
    assert index["qwen3_export.method"] == "gptq"
    assert index["weights"]["model.layers.0.mlp.up_proj"]["layout"] == "int4"


def test_awq_s_codes_arrive_and_its_scales_are_recorded(tmp_path: Path, text: Path) -> None:
    model = one_layer(load("demo"))
    export = prepare(model, find_recipe("8da4w"), out=tmp_path / "out", options=SHORT)
    windows = read_calibration(text, model.tokenizer, sequence_length=64, num_samples=4)
    solution = solve("awq", export.model.graph, export.weight_formats, windows, work_dir=tmp_path / "work")
    export = written(with_solution(export, solution))
    stored = read_weights(export.out / "model.pte", export.model.graph, read_index(export.out))
    for weight in export.graph:
        np.testing.assert_array_equal(stored.weights[weight.name].read(), weight.read(), err_msg=weight.name)
    report = check(export, model)
    assert (report.verdict, report.method) == ("pass", "awq"), report.reasons


def test_the_program_computes_what_it_should(solved: ExecutorchExport) -> None:
    """Where no activation lies half-way between two codes, the model of XNNPACK's arithmetic is exact."""
    report = check(solved, one_layer(load("demo")))
    assert report.verdict == "pass", report.reasons
    assert report.shipped.status == report.decode.status == "pass"
    assert report.conversion.mean_kld is not None
    assert report.floor.mean_kld is not None
    assert report.conversion.mean_kld < 0.2 * report.floor.mean_kld
    assert (report.target, report.recipe, report.method) == ("executorch", "8da4w", "gptq")


def test_a_full_check_lowers_an_exact_twin(bytes_a_channel: ExecutorchExport) -> None:
    report = check(bytes_a_channel, bytes_a_channel.model, full=True)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-10
    assert report.sampled is not None
    assert report.sampled.exact_form == "all layers, fp32 twin"


def test_a_mixture_of_experts(tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """Router and experts are one operator, which computes in fp32 here: the twin, in which it stays, is exact."""
    model = one_layer(load(model_folder("moe")))
    export = written(prepare(model, find_recipe("8da4w"), out=tmp_path / "out", options=SHORT))
    stored = read_weights(export.out / "model.pte", export.model.graph, read_index(export.out))
    expert = module_name(Role(Kind.UP_PROJ, 0, 5))
    np.testing.assert_array_equal(stored.weights[expert].read(slice(3, 21)), export.graph.weights[expert].read()[3:21])
    report = check(export, model, full=True)
    assert report.verdict == "pass", report.reasons
    assert report.conversion.mean_kld is not None
    assert report.conversion.mean_kld < 1e-10


@pytest.mark.parametrize(("variant", "recipe"), [("yarn", "8da4w"), ("rows_of_320", "8da8w"), ("tied", "fp32")])
def test_variants(tmp_path: Path, model_folder: Callable[[str], Path], variant: str, recipe: str) -> None:
    """A stretched RoPE, heads whose sizes together differ from hidden, a tied head."""
    model = one_layer(load(model_folder(variant)))
    export = written(prepare(model, find_recipe(recipe), out=tmp_path / "out", options=SHORT))
    report = check(export, model)
    assert report.verdict == "pass", report.reasons


def test_a_portable_program_names_no_operator_of_its_own(tmp_path: Path) -> None:
    model = one_layer(load("demo"))
    export = prepare(
        model,
        find_recipe("8da8w"),
        out=tmp_path / "out",
        options=PORTABLE,
    )
    written(export)
    program = (export.out / "model.pte").read_bytes()
    assert b"llama::" not in program
    assert b"quantized_decomposed::" not in program
    report = check(export, model)
    assert report.verdict == "pass", report.reasons
    assert Program(export.out / "model.pte").constant("use_sdpa_with_kv_cache") is False
    with pytest.raises(QuantizationError, match="not every runtime has; use 8 or 32"):
        prepare(
            model,
            find_recipe("8da8w"),
            out=tmp_path,
            options=replace(PORTABLE, embedding=4),
        )


def test_the_first_and_the_last_position_and_one_past_it(solved: ExecutorchExport) -> None:
    tokens = list(range(100, 100 + MAX_SEQ_LEN))
    program = Program(solved.out / "model.pte")
    single_TV = program.logits(tokens)
    assert np.isfinite(single_TV).all()
    for size in (1, 4, MAX_SEQ_LEN - 1, MAX_SEQ_LEN):
        program = Program(solved.out / "model.pte")
        last = max(position for position, _ in program.chunks(tokens, size))
        assert last == MAX_SEQ_LEN - 1
    for found, start in (([5], MAX_SEQ_LEN), ([5] * 4, MAX_SEQ_LEN - 3)):
        with pytest.raises(CheckpointError, match="ExecuTorch cannot run the program"):
            Program(solved.out / "model.pte").last_logits(found, start=start)


def test_a_program_of_another_tool_is_judged_by_what_it_does(solved: ExecutorchExport, tmp_path: Path) -> None:
    shutil.copytree(solved.out, tmp_path / "out")
    (tmp_path / "out" / INDEX).unlink()
    (tmp_path / "out" / "model.pte").rename(tmp_path / "out" / "program.pte")
    demo = one_layer(load("demo"))
    report = check(solved, demo, tmp_path / "out")
    assert report.verdict == "not_run", report.reasons
    assert report.artifact == "program.pte"
    assert report.end_to_end.mean_kld == pytest.approx(check(solved, demo).end_to_end.mean_kld)


def test_what_runners_ask(solved: ExecutorchExport) -> None:
    program = Program(solved.out / "model.pte")
    expected = constant_methods(solved)
    assert {name: program.constant(name) for name in expected} == expected
    assert expected["get_eos_ids"] == [8158, 8156]
    assert expected["get_max_seq_len"] == expected["get_max_context_len"] == MAX_SEQ_LEN
    assert program.constant("get_nothing") is None


def test_another_model_and_broken_folders(
    solved: ExecutorchExport, bytes_a_channel: ExecutorchExport, tmp_path: Path
) -> None:
    demo = one_layer(load("demo"))
    shutil.copytree(solved.out, tmp_path / "edited")
    index = json.loads((tmp_path / "edited" / INDEX).read_text())
    up, gate = (index["weights"][f"model.layers.0.mlp.{name}_proj"] for name in ("up", "gate"))
    up["codes"], gate["codes"] = gate["codes"], up["codes"]
    (tmp_path / "edited" / INDEX).write_text(json.dumps(index))
    report = check(solved, demo, tmp_path / "edited")
    assert report.verdict == "fail"
    assert report.conversion.status == "fail"
    (tmp_path / "edited" / INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="does not say where it is"):
        check(solved, demo, tmp_path / "edited")
    (tmp_path / "edited" / INDEX).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        check(solved, demo, tmp_path / "edited")
    (tmp_path / "edited" / "model.pte").unlink()
    with pytest.raises(CheckpointError, match=r"holds no model\.pte"):
        check(solved, demo, tmp_path / "edited")
    shutil.copyfile(bytes_a_channel.out / "model.pte", tmp_path / "edited" / "model.pte")
    shutil.copyfile(bytes_a_channel.out / INDEX, tmp_path / "edited" / INDEX)
    report = check(solved, demo, tmp_path / "edited")
    assert report.verdict == "fail"


def replaced(program: bytes, old: np.ndarray, new: np.ndarray) -> bytes:
    """The program with some numbers in another's place; they must be in it."""
    assert old.tobytes() in program
    return program.replace(old.tobytes(), new.tobytes())


def swapped_norms(program: bytes, export: ExecutorchExport) -> bytes:
    q, k = (export.graph[Role(kind, 0)].read() for kind in (Kind.Q_NORM, Kind.K_NORM))
    return replaced(replaced(replaced(program, q, -q), k, q), -q, k)


def wrong_eps(program: bytes, export: ExecutorchExport) -> bytes:
    eps = export.graph.config.rms_norm_eps
    return replaced(program, np.float32(eps), np.float32(1e-5))


def wrong_base(program: bytes, export: ExecutorchExport) -> bytes:
    config = export.graph.config
    right = rotation(config, start=0, count=MAX_SEQ_LEN)
    wrong = rotation(replace(config, rope_theta=1e4), start=0, count=MAX_SEQ_LEN)
    return replaced(replaced(program, right.cos.numpy(), wrong.cos.numpy()), right.sin.numpy(), wrong.sin.numpy())


def other_direction(program: bytes, export: ExecutorchExport) -> bytes:
    sin = rotation(export.graph.config, start=0, count=MAX_SEQ_LEN).sin.numpy()
    return replaced(program, sin, -sin)


def cos_for_sin(program: bytes, export: ExecutorchExport) -> bytes:
    turn = rotation(export.graph.config, start=0, count=MAX_SEQ_LEN)
    cos, sin = turn.cos.numpy(), turn.sin.numpy()
    return replaced(replaced(replaced(program, cos, -cos), sin, cos), -cos, sin)


def plain_k_norm(program: bytes, export: ExecutorchExport) -> bytes:
    norm = export.graph[Role(Kind.K_NORM, 0)].read()
    return replaced(program, norm, np.ones_like(norm))


def another_end_token(program: bytes, export: ExecutorchExport) -> bytes:
    first = export.model.tokenizer.generation.eos_token_ids[0]
    return replaced(program, np.int64(first), np.int64(first - 1))


def other_nibbles(program: bytes, export: ExecutorchExport) -> bytes:
    place = read_index(export.out)["weights"]["model.layers.0.mlp.up_proj"]["codes"]
    rows, columns = export.graph[Role(Kind.UP_PROJ, 0)].shape
    codes = np.frombuffer(program[place : place + rows * columns // 2], np.uint8)
    return replaced(program, codes, (codes << 4) | (codes >> 4))


def scales_of_another(program: bytes, export: ExecutorchExport) -> bytes:
    index = read_index(export.out)["weights"]
    up, gate = (index[f"model.layers.0.mlp.{name}_proj"]["scales"] for name in ("up", "gate"))
    size = (
        export.graph[Role(Kind.UP_PROJ, 0)].shape[0]
        * (export.graph.config.hidden_size // export.options.group_size)
        * 2
    )
    return replaced(
        program, np.frombuffer(program[up : up + size], np.uint8), np.frombuffer(program[gate : gate + size], np.uint8)
    )


BROKEN: list[tuple[Callable[[bytes, ExecutorchExport], bytes], str]] = [
    (swapped_norms, "q_norm"),
    (wrong_eps, "rms_norm_eps: the program holds another number"),
    (wrong_base, "RoPE's base is 10,000"),
    (other_direction, "conversion: mean KLD"),
    (cos_for_sin, "cos: the program holds other angles"),
    (plain_k_norm, "model.layers.0.self_attn.k_norm"),
    (another_end_token, "get_eos_ids gives [8157, 8156]"),
    (other_nibbles, "model.layers.0.mlp.up_proj"),
    (scales_of_another, "model.layers.0.mlp.up_proj: its scales in the program are not those that were exported"),
]


@pytest.mark.parametrize(("break_it", "told"), BROKEN, ids=[break_it.__name__ for break_it, _ in BROKEN])
def test_broken_programs_are_caught(
    solved: ExecutorchExport,
    tmp_path: Path,
    caught: Callable[[str, Report], None],
    break_it: Callable[[bytes, ExecutorchExport], bytes],
    told: str,
) -> None:
    shutil.copytree(solved.out, tmp_path / "out")
    path = tmp_path / "out" / "model.pte"
    path.write_bytes(break_it(path.read_bytes(), solved))
    report = check(solved, one_layer(load("demo")), tmp_path / "out")
    caught(break_it.__name__.replace("_", " "), report)
    assert report.verdict == "fail"
    assert any(told in reason for reason in report.reasons), report.reasons


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja"])
def test_other_documents_are_caught(
    solved: ExecutorchExport, tmp_path: Path, caught: Callable[[str, Report], None], name: str
) -> None:
    shutil.copytree(solved.out, tmp_path / "out")
    path = tmp_path / "out" / name
    path.write_text(path.read_text().replace("<|im_end|>", "<|im_fin|>"))
    report = check(solved, one_layer(load("demo")), tmp_path / "out")
    caught(f"another {name}", report)
    assert report.verdict == "fail"
    assert report.metadata[0].startswith(f"{name} is not the checkpoint's")


def test_what_cannot_be_exported_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out, tied = tmp_path / "out", load(model_folder("tied"))
    for variant, recipe, told in [
        ("moe", "fp32", "has no fp32 form; use 8da8w or 8da4w"),
        ("moe_shares_as_they_are", "8da4w", "always brings the chosen experts' shares to one"),
    ]:
        with pytest.raises(UnsupportedModelError, match=told):
            prepare(load(model_folder(variant)), find_recipe(recipe), out=out)
    for options, told in [
        ({"group_size": 48}, "`group_size` 48: use one of 32, 64, 128, 256"),
        ({"embedding": 5}, "use one of 4, 8, 32"),
        ({"max_seq_len": 1}, "must be from 2"),
        ({"context_length": 1 << 20}, "the model has positions up to 2048"),
    ]:
        with pytest.raises(OptionError, match=told):
            prepare(tied, find_recipe("8da4w"), out=out, options=ExecutorchOptions(**options))
    with pytest.raises(QuantizationError, match="not an ExecuTorch recipe"):
        find_recipe("int4")
    assert not out.exists()


def test_an_untied_graph_is_the_same_function(model_folder: Callable[[str], Path]) -> None:
    graph = load(model_folder("tied")).graph
    apart = untied(graph)
    assert not apart.config.tie_word_embeddings
    np.testing.assert_array_equal(apart.head.read(), graph.head.read())
    assert untied(apart) is apart


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory: pytest.TempPathFactory) -> ExecutorchExport:
    """The demo's first layer as 8da8w, whose cache holds three pieces of a prompt."""
    options = ExecutorchOptions(max_seq_len=PIECE, context_length=MAX_SEQ_LEN)
    out = tmp_path_factory.mktemp("executorch") / "out"
    return written(prepare(one_layer(load("demo")), find_recipe("8da8w"), out=out, options=options))


RUNNER = """
import json, sys
import executorch.extension.llm.custom_ops.custom_ops, executorch.kernels.quantized
from executorch.extension.llm.runner import GenerationConfig, TextLLMRunner
folder, told = sys.argv[1], []
for prompt, count in json.loads(sys.argv[2]):
    runner, pieces = TextLLMRunner(folder + "/model.pte", folder + "/tokenizer.json"), []
    config = GenerationConfig(echo=False, temperature=0.0, max_new_tokens=count)
    try:
        runner.generate(prompt, config, pieces.append, None)
        told.append(pieces)
    except RuntimeError as error:
        told.append(str(error))
with open(folder + "/told.json", "w") as file:
    json.dump(told, file)
"""


def through_the_runner(folder: Path, prompts: list[tuple[str, int]]) -> list[Any]:
    """What ExecuTorch's own runner for apps gives, piece by piece, or its error; in a process of its own."""
    command = [sys.executable, "-c", RUNNER, str(folder), json.dumps(prompts)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    told = json.loads((folder / "told.json").read_text())
    (folder / "told.json").unlink()
    return list(told)


def text_of(export: ExecutorchExport, count: int) -> tuple[str, list[int]]:
    """A text of so many tokens."""
    tokenizer = export.model.tokenizer
    tokens = list(tokenizer.encode("The quick brown fox jumps over the lazy dog. " * 40))[:count]
    text = tokenizer.decode(tokens)
    assert list(tokenizer.encode(text)) == tokens
    return text, tokens


def test_executorch_s_runner_takes_prompts_in_pieces_and_fills_the_cache(in_pieces: ExecutorchExport) -> None:
    """Prompts around one piece and several, each continued to the cache's last position."""
    sizes = (PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, MAX_SEQ_LEN - 1)
    texts = [text_of(in_pieces, size) for size in sizes]
    found = through_the_runner(in_pieces.out, [(text, MAX_SEQ_LEN - len(tokens)) for text, tokens in texts])
    for (_, tokens), pieces in zip(texts, found, strict=True):
        assert isinstance(pieces, list), pieces
        assert len(pieces) == MAX_SEQ_LEN - len(tokens)
        program = Program(in_pieces.out / "model.pte")
        *_, (_, logits_V) = program.chunks(tokens, PIECE)
        made = [int(logits_V.argmax())]
        for position in range(len(tokens), MAX_SEQ_LEN - 1):
            made.append(int(program.last_logits([made[-1]], start=position).argmax()))
        assert "".join(pieces) == in_pieces.model.tokenizer.decode(made)


def test_a_cache_of_one_piece_ends_without_an_error(solved: ExecutorchExport) -> None:
    """Where one call takes as many tokens as the cache, the runner itself stops at the end."""
    text, tokens = text_of(solved, 30)
    (pieces,) = through_the_runner(solved.out, [(text, 100_000)])
    assert isinstance(pieces, list), pieces
    assert len(pieces) == MAX_SEQ_LEN - len(tokens)


def test_a_program_that_takes_less_than_it_says_is_told(in_pieces: ExecutorchExport, tmp_path: Path) -> None:
    """As ExecuTorch's own export writes them, and ours did: runners give get_max_seq_len tokens at once."""
    assert not errors_of(in_pieces.out, in_pieces.model)
    shutil.copytree(in_pieces.out, tmp_path / "out")
    path = tmp_path / "out" / "model.pte"
    program = path.read_bytes()
    assert program.count(np.int64(PIECE).tobytes()) >= 1
    path.write_bytes(program.replace(np.int64(PIECE).tobytes(), np.int64(PIECE + 1).tobytes()))
    assert Program(path).constant("get_max_seq_len") == PIECE + 1
    assert any(f"one call takes {PIECE} tokens" in text for text in errors_of(tmp_path / "out", in_pieces.model))


def errors_of(folder: Path, model: Model) -> list[str]:
    return [found.text for found in lint_executorch(folder, model.graph, model.tokenizer) if found.is_error]


def test_the_example_stops_where_the_cache_is_full(in_pieces: ExecutorchExport) -> None:
    """A prompt of more than one piece, and more tokens asked for than there is room."""
    example = Path(__file__).parents[3] / "examples" / "executorch_chat.py"
    question = "Tell me about the sea. " * 7
    command = [sys.executable, str(example), str(in_pieces.out), question, "--new", "500", "--no-think"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    assert f"(the program's {MAX_SEQ_LEN} positions are full)" in done.stderr
    assert "Traceback" not in done.stderr
    refused = subprocess.run([*command[:3], question * 3], check=False, capture_output=True, text=True, timeout=600)
    assert refused.returncode == 1
    assert f"where the program has room for {MAX_SEQ_LEN}" in refused.stderr


def test_the_example_answers_with_the_program_s_tokens(solved: ExecutorchExport) -> None:
    tokenizer = solved.model.tokenizer
    example = Path(__file__).parents[3] / "examples" / "executorch_chat.py"
    command = [sys.executable, str(example), str(solved.out), "Tell me about the sea.", "--new", "12", "--no-think"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    question = [{"role": "user", "content": "Tell me about the sea."}]
    tokens = tokenizer.encode(tokenizer.render(question, enable_thinking=False))
    program, made = Program(solved.out / "model.pte"), []
    logits_V = program.last_logits(tokens)
    while len(made) < 12 and (token := int(logits_V.argmax())) not in tokenizer.generation.eos_token_ids:
        logits_V = program.last_logits([token], start=len(tokens) + len(made))
        made.append(token)
    assert done.stdout.rstrip("\n") == tokenizer.decode(made, skip_special_tokens=True).rstrip("\n")
