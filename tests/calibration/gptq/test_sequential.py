"""Sequential GPTQ over whole models: quality, resuming to the bit, mixtures, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from models import COLD_EXPERT
from numpy.typing import NDArray

from qwen3_export.calibration.gptq.report import CalibrationReport
from qwen3_export.calibration.gptq.sequential import SequentialSettings, gptq_graph
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.tokenizer import load_tokenizer
from qwen3_export.errors import QuantizationError
from qwen3_export.graph import Graph, Kind
from qwen3_export.parity.metrics import kl_divergence
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F16, F32
from qwen3_export.quantizers.formats import NumberFormat, as_packed
from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.quantizers.gptq.solver import GptqSettings
from qwen3_export.quantizers.weights.protocols import QuantizedWeight
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.reference.model import logits

Windows = Sequence[NDArray[np.int64]]
QUICK = SequentialSettings(solver=GptqSettings(rounds=1, cycles=1))


Q4_K = GGML_FORMATS["Q4_K"]


def formats_of(graph: Graph, matrix: NumberFormat = Q4_K, *, embedding: NumberFormat = F16) -> dict[str, NumberFormat]:
    """Norms and router in F32, the embedding apart, everything else alike."""
    chosen = {Kind.EMBED_TOKENS: embedding, Kind.LM_HEAD: embedding, Kind.ROUTER: F32}
    return {weight.name: F32 if weight.role.is_norm else chosen.get(weight.role.kind, matrix) for weight in graph}


def random_windows(count: int = 6, length: int = 64) -> Windows:
    random = np.random.default_rng(0)
    return [random.integers(0, 8182, length) for _ in range(count)]


def stored_bytes(graph: Graph) -> dict[str, bytes]:
    """What a file would hold of every weight."""
    found = {}
    for weight in graph:
        assert isinstance(weight, QuantizedWeight)
        found[weight.name] = as_packed(weight.number_format).pack(*weight.encode()).tobytes()
    return found


def mean_kld(reference: Graph, candidate: Graph, windows: Windows) -> float:
    klds = [
        kl_divergence(logits(reference, tokens_T), logits(candidate, tokens_T)).mean()
        for tokens_T in map(torch.from_numpy, windows)
    ]
    return float(torch.stack(klds).mean())


@pytest.fixture(scope="module")
def two_layers(demo_graph: Graph) -> Graph:
    """The demo's first two layers, with its embedding and head."""
    return demo_graph.truncated(0, 2)


@pytest.fixture(scope="module")
def text(demo_folder: Path, demo_graph: Graph) -> Windows:
    """Windows of real text: most to calibrate on, the last two to test with."""
    return read_calibration(None, load_tokenizer(demo_folder, demo_graph.config), sequence_length=128).windows


def solve(
    graph: Graph,
    windows: Windows,
    folder: Path,
    *,
    formats: Mapping[str, NumberFormat] | None = None,
    settings: SequentialSettings = QUICK,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Graph, CalibrationReport]:
    return gptq_graph(
        graph, formats or formats_of(graph), windows, work_dir=folder, settings=settings, threads=2, progress=progress
    )


def test_the_file_is_much_better_than_plain_rounding_on_other_text(
    two_layers: Graph, text: Windows, tmp_path: Path
) -> None:
    formats = formats_of(two_layers, GGML_FORMATS["Q3_K"])
    solved, report = solve(two_layers, text[:16], tmp_path, formats=formats)
    rounded = round_graph(two_layers, formats)
    assert mean_kld(two_layers, solved, text[-2:]) < 0.5 * mean_kld(two_layers, rounded, text[-2:])
    assert {weight.method for weight in report.weights} == {"gptq"}
    assert all(weight.error < weight.rtn_error for weight in report.weights)
    assert {name: len(data) for name, data in stored_bytes(solved).items()} == {
        name: len(data) for name, data in stored_bytes(rounded).items()
    }


def test_aiming_at_the_fp32_model_helps(two_layers: Graph, text: Windows, tmp_path: Path) -> None:
    formats = formats_of(two_layers, GGML_FORMATS["Q2_K"])
    unaware = SequentialSettings(solver=GptqSettings(step=0.0, rounds=1, cycles=1), take_back_residual=False)
    aiming, _ = solve(two_layers, text[:16], tmp_path, formats=formats)
    plain, _ = solve(two_layers, text[:16], tmp_path, formats=formats, settings=unaware)
    assert mean_kld(two_layers, aiming, text[-2:]) < mean_kld(two_layers, plain, text[-2:])


def test_counting_errors_of_outputs_together_helps(two_layers: Graph, text: Windows, tmp_path: Path) -> None:
    formats = formats_of(two_layers, GGML_FORMATS["Q2_K"])
    tied = SequentialSettings(solver=QUICK.solver, output_tokens=2048)
    with_outputs, _ = solve(two_layers, text[:16], tmp_path, formats=formats, settings=tied)
    without, _ = solve(two_layers, text[:16], tmp_path, formats=formats)
    assert mean_kld(two_layers, with_outputs, text[-2:]) < 0.97 * mean_kld(two_layers, without, text[-2:])


class KilledError(Exception):
    pass


@pytest.mark.parametrize(("output_tokens", "step"), [(0, 1), (0, 2), (0, 4), (256, 1), (256, 3), (256, 5), (256, 7)])
def test_killed_and_started_again_it_gives_the_same_bytes(
    model_graph: Callable[[str], Graph], tmp_path: Path, output_tokens: int, step: int
) -> None:
    graph = model_graph("untied")
    settings = SequentialSettings(solver=QUICK.solver, output_tokens=output_tokens)

    def kill(done: int, _total: int) -> None:
        if done == step:
            raise KilledError

    whole, _ = solve(graph, random_windows(), tmp_path / "whole", settings=settings)
    with pytest.raises(KilledError):
        solve(graph, random_windows(), tmp_path / "cut", settings=settings, progress=kill)
    steps: list[tuple[int, int]] = []
    resumed, report = solve(
        graph, random_windows(), tmp_path / "cut", settings=settings, progress=lambda *done: steps.append(done)
    )
    assert stored_bytes(resumed) == stored_bytes(whole)
    assert steps[-1] == ((13, 13) if output_tokens else (9, 9))
    assert len(report.weights) == 14


def test_q_and_k_report_their_error_after_the_norm_also_when_resumed(
    model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = model_graph("untied").truncated(0, 1)
    coarse, resumed, fine = (
        {weight.name.rpartition(".")[2]: weight.normed_error for weight in report.weights}
        for report in (
            solve(graph, random_windows(), tmp_path / "coarse", formats=formats_of(graph, GGML_FORMATS["Q2_K"]))[1],
            solve(graph, random_windows(), tmp_path / "coarse", formats=formats_of(graph, GGML_FORMATS["Q2_K"]))[1],
            solve(graph, random_windows(), tmp_path / "fine", formats=formats_of(graph, GGML_FORMATS["Q6_K"]))[1],
        )
    )
    assert coarse == resumed
    assert {name for name, error in coarse.items() if error is not None} == {"q_proj", "k_proj"}
    for name in ("q_proj", "k_proj"):
        assert 0 < (fine[name] or 0) < 0.1 * (coarse[name] or 0) < 0.1


def test_a_result_that_is_there_is_not_computed_again(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("untied")
    solve(graph, random_windows(), tmp_path)
    (folder,) = tmp_path.iterdir()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    solve(graph, random_windows(), tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


@pytest.mark.parametrize("change", ["tokens", "settings", "formats"])
def test_another_run_does_not_find_these_results(
    model_graph: Callable[[str], Graph], tmp_path: Path, change: str
) -> None:
    graph = model_graph("untied")
    solve(graph, random_windows(), tmp_path)
    solve(
        graph,
        random_windows(length=65) if change == "tokens" else random_windows(),
        tmp_path,
        settings=SequentialSettings(solver=GptqSettings(rounds=1)) if change == "settings" else QUICK,
        formats=formats_of(graph, GGML_FORMATS["Q5_K"]) if change == "formats" else None,
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_hidden_states_on_disk_change_nothing(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("untied")
    on_disk = SequentialSettings(solver=QUICK.solver, memory_limit=0)
    in_memory, _ = solve(graph, random_windows(), tmp_path / "memory")
    spilled, _ = solve(graph, random_windows(), tmp_path / "disk", settings=on_disk)
    assert stored_bytes(spilled) == stored_bytes(in_memory)


def test_a_tied_embedding_is_solved_as_the_head(two_layers: Graph, text: Windows, tmp_path: Path) -> None:
    graph = two_layers.truncated(0, 1)
    _, report = solve(graph, text[:4], tmp_path, formats=formats_of(graph, embedding=GGML_FORMATS["Q6_K"]))
    assert report.weights[0].name == "model.embed_tokens"
    assert report.weights[0].error < report.weights[0].rtn_error


def test_an_untied_head_is_solved_and_its_embedding_rounded(
    model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = model_graph("untied").truncated(0, 1)
    solved, report = solve(
        graph, random_windows(2), tmp_path, formats=formats_of(graph, embedding=GGML_FORMATS["Q4_0"])
    )
    assert report.weights[-1].name == "lm_head"
    assert "model.embed_tokens" not in {weight.name for weight in report.weights}
    assert solved.weights["model.embed_tokens"].format == "Q4_0"


@pytest.mark.parametrize("qk_norm", ["averaged", "grouped"])
def test_tokens_of_q_and_k_are_weighed_by_their_norms(
    model_graph: Callable[[str], Graph], tmp_path: Path, qk_norm: str
) -> None:
    graph = model_graph("untied").truncated(0, 1)
    plain, weighted = (
        stored_bytes(
            solve(
                graph,
                random_windows(),
                tmp_path,
                settings=SequentialSettings(solver=QUICK.solver, qk_norm=chosen),  # type: ignore[arg-type]
            )[0]
        )
        for chosen in ("off", qk_norm)
    )
    same = {name.rpartition(".")[2] for name in plain if plain[name] == weighted[name]}
    assert {"q_proj", "k_proj"}.isdisjoint(same)
    assert "v_proj" in same


def test_a_cold_expert_is_quantized_for_the_average_token_and_named(
    model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = model_graph("moe_cold").truncated(0, 1)
    solved, report = solve(graph, random_windows(), tmp_path)
    (routing,) = report.routing
    assert routing.unseen == [COLD_EXPERT]
    assert sum(routing.tokens) == 6 * 64 * graph.config.num_experts_per_tok
    assert 0 <= routing.changed < 0.5
    assert any(f"experts {COLD_EXPERT}" in note for note in report.notes)
    cold = solved.weights[f"model.layers.0.mlp.experts.{COLD_EXPERT}.down_proj"]
    source = graph.weights[cold.name].read()
    assert np.square(cold.read() - source).sum() < 0.05 * np.square(source).sum()


def test_an_affine_format_is_solved_as_well(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("untied").truncated(0, 1)
    int4 = AffineFormat(num_bits=4, group_size=64)
    formats = formats_of(graph, int4)
    for _ in range(2):  # the second finds what the first has left
        solved, report = gptq_graph(graph, formats, random_windows(), work_dir=tmp_path, settings=QUICK)
        assert {weight.format for weight in report.weights} == {"int4_g64"}
        weight = solved.weights["model.layers.0.mlp.down_proj"]
        assert np.abs(weight.read() - graph.weights[weight.name].read()).max() < 0.1


def test_formats_that_do_not_fit_are_refused_before_any_work(
    model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = model_graph("rows_of_320")
    with pytest.raises(QuantizationError, match=r"q_proj: Q4_K: 320 columns"):
        solve(graph, random_windows(), tmp_path)
    with pytest.raises(QuantizationError, match="a vector is not quantized"):
        solve(graph, random_windows(), tmp_path, formats=dict.fromkeys(graph.weights, GGML_FORMATS["Q8_0"]))
    with pytest.raises(QuantizationError, match="has no number format"):
        solve(graph, random_windows(), tmp_path, formats={"model.norm": F32})
    assert not list(tmp_path.iterdir())
