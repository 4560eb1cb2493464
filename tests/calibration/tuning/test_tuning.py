"""Tuning norms and scales: derivatives against differences, a loss that falls, runs that go on, and what is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import DEMO, write_model
from numpy.typing import NDArray
from tokens import routing_margin
from torch import Tensor

from qwen3_export import api
from qwen3_export.calibration.tokens import Calibration
from qwen3_export.calibration.tuning import run as module
from qwen3_export.calibration.tuning.divergence import answers, divergences, head_gradient
from qwen3_export.calibration.tuning.forecast import tuning_forecast
from qwen3_export.calibration.tuning.gradients import gradients
from qwen3_export.calibration.tuning.kinds import KINDS
from qwen3_export.calibration.tuning.parameters import Parameters
from qwen3_export.calibration.tuning.run import TuneSettings, tune_graph
from qwen3_export.calibration.tuning.text import TuningText, tuning_text
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.errors import CalibrationError, OptionError
from qwen3_export.graph import ALL_ROWS, DerivedWeight, Graph, Kind, Role, Weight
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.formats import Codes, NumberFormat, Values
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.weights.protocols import read_quantized
from qwen3_export.quantizers.weights.tuned import MOST_OF_A_NORM
from qwen3_export.reference.model import forward, logits

# Scales and tables in float32, so that small differences show.
AFFINE = AffineFormat(num_bits=3, group_size=32)
PALETTE = PaletteFormat(num_bits=3, rows_per_table=8, table_dtype="f32")
# The least lead of a chosen expert, in probability.
SETTLED = 5e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Held(DerivedWeight):
    """A rounded weight, with codes and parameters in memory."""

    number_format: NumberFormat
    codes: Codes
    params: Any

    def encode(self, rows: slice = ALL_ROWS) -> tuple[Codes, Any]:
        first, last, _ = rows.indices(self.shape[0])
        return self.codes[first:last], self.params.rows(slice(first, last), of=self.shape[0])

    def read(self, rows: slice = ALL_ROWS) -> Values:
        return read_quantized(self, rows)


def windows(graph: Graph, count: int = 2, length: int = 24, seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, graph.config.vocab_size, (length,), generator=generator) for _ in range(count)]


def settled_windows(graph: Graph) -> list[Tensor]:
    """Short windows for which no small change sends a token to another expert."""
    found = (windows(graph, length=5, seed=seed) for seed in itertools.count())
    return next(some for some in found if min(routing_margin(graph, tokens_T) for tokens_T in some) > SETTLED)


def pieces(graph: Graph, count: int) -> TuningText:
    """Random tokens, of which a quarter is held back."""
    found = [tokens_T.numpy() for tokens_T in windows(graph, count)]
    held = found[: count // 4]
    seen = found[count // 4 :]
    return TuningText(seen=seen, held_back=held, seen_kinds=as_text(seen), kinds=as_text(held))


def as_text(found: list[Any]) -> list[NDArray[np.int8]]:
    """The kind of each token."""
    return [np.zeros(len(part), np.int8) for part in found]


def quantized(graph: Graph, number_format: NumberFormat) -> tuple[Graph, dict[str, str]]:
    """The graph with its matrices rounded, and their names."""
    weights: dict[str, Weight] = dict(graph.weights)
    for weight in graph:
        if len(weight.shape) > 1 and weight.role.kind is not Kind.ROUTER:
            codes, params = number_format.encode(weight.read())
            weights[weight.name] = Held(source=weight, number_format=number_format, codes=codes, params=params)
    return graph.with_weights(weights), {name: "digest" for name, weight in weights.items() if isinstance(weight, Held)}


def mean(graph: Graph, other: Graph) -> float:
    """The mean KL divergence from whole logits."""
    total = torch.zeros((), dtype=torch.float64)
    for tokens in windows(graph):
        p, q = (logits(side, tokens).double().log_softmax(-1) for side in (graph, other))
        total += (p.exp() * (p - q)).sum(-1).mean() / len(windows(graph))
    return float(total)


@pytest.mark.parametrize("variant", ["tied", "untied"])
def test_divergences_are_those_of_whole_logits(
    variant: str, model_graph: Callable[[str], Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3_export.calibration.tuning.divergence.LOGITS_HELD", 48 * 1000)
    graph = model_graph(variant)
    other, _ = quantized(graph, AFFINE)
    final = forward(other, windows(graph))
    found_P = divergences(graph, answers(graph, windows(graph)), other, final)
    assert found_P.shape == (48,)
    assert float(found_P.mean()) == pytest.approx(mean(graph, other), rel=1e-4)


def test_the_gradient_of_the_head(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("untied")
    other, _ = quantized(graph, AFFINE)
    final = [part.clone() for part in forward(other, windows(graph))]
    head_VD = torch.from_numpy(np.array(other.head.read()))
    by_head_VD = torch.zeros_like(head_VD)

    def see(rows: slice, gradient_RD: Tensor) -> None:
        by_head_VD[rows] += gradient_RD

    weights_P = torch.rand(48, generator=torch.Generator().manual_seed(1))
    found = torch.cat(head_gradient(graph, answers(graph, windows(graph)), other, final, weights_P, see))
    with torch.enable_grad():
        hidden, head = torch.cat(final).requires_grad_(), head_VD.clone().requires_grad_()
        p = torch.cat([logits(graph, tokens).clone() for tokens in windows(graph)]).softmax(-1)
        loss = -(weights_P * (p * (hidden @ head.T).log_softmax(-1)).sum(-1)).sum()
        wanted, by_head = torch.autograd.grad(loss, [hidden, head])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(by_head_VD, by_head, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(("variant", "number_format"), [("tied", AFFINE), ("tied", PALETTE), ("moe", AFFINE)], ids=str)
def test_derivatives_by_all_that_is_tuned(
    variant: str, number_format: NumberFormat, model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = model_graph(variant)
    other, solved = quantized(graph, number_format)
    parameters = Parameters.of(other, solved)
    found, tuned = parameters.zeros(), parameters.tuned()
    texts = settled_windows(other) if variant == "moe" else windows(graph)
    expected = answers(graph, texts)
    count = sum(map(len, texts))
    gradients(graph, tuned, texts, expected, torch.full((count,), 1 / count), found, folder=tmp_path, threads=2)
    assert set(found) == {weight.name for weight in graph if weight.role.is_norm or weight.name in solved}
    checked, step = 0, 5e-4 if variant == "moe" else 2e-3
    for name, gradient in found.items():
        weight = graph.weights[name]
        if weight.role.layer not in (None, 0) or (weight.role.expert or 0) > 1:
            continue
        # The direction that matters most, so that it stands out from rounding in fp32.
        direction = gradient / max(float(np.sqrt(np.square(gradient).sum())), 1e-30) * np.sqrt(gradient.size)
        sides = []
        for sign in (1, -1):
            parameters.changes[name][...] = sign * step * direction
            sides.append(float(divergences(graph, expected, tuned, forward(tuned, texts)).mean()))
        parameters.changes[name][...] = 0
        measured = (sides[0] - sides[1]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(measured, rel=0.05, abs=1e-4), name
        checked += 1
    assert checked >= 12


def test_the_loss_falls_and_runs_are_alike(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("tied")
    other, solved = quantized(graph, AFFINE)
    settings = TuneSettings(batch_tokens=96, epochs=3, rate=3e-3)
    seen: list[tuple[int, int]] = []
    text = pieces(graph, 16)
    first = tune_graph(
        graph, other, solved, text, work_dir=tmp_path / "a", settings=settings, progress=lambda *step: seen.append(step)
    )
    assert not first.keeps_solved
    assert first.measured < 0.985 * first.measured_before
    assert seen == [(step, 9) for step in range(1, 10)]
    (of_text,) = first.record()["by_kind"].values()
    assert (of_text["before"], of_text["after"]) == pytest.approx((first.measured_before, first.measured))
    assert 0 < of_text["error"] < of_text["before"] - of_text["after"]
    assert first.num_tokens == 12 * 24
    second = tune_graph(graph, other, solved, text, work_dir=tmp_path / "b", settings=settings)
    for weight in first.graph:
        np.testing.assert_array_equal(weight.read(), second.graph.weights[weight.name].read(), err_msg=weight.name)
        is_tuned = weight.role.is_norm or weight.name in solved
        assert is_tuned != np.array_equal(weight.read(), other.weights[weight.name].read()), weight.name


def test_an_interrupted_run_goes_on(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = model_graph("tied")
    other, solved = quantized(graph, AFFINE)
    settings, text = TuneSettings(batch_tokens=96, epochs=2, rate=3e-3), pieces(graph, 16)
    whole = tune_graph(graph, other, solved, text, work_dir=tmp_path / "whole", settings=settings)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_SAVES", 0.0)

    def interrupt(done: int, _total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune_graph(graph, other, solved, text, work_dir=tmp_path / "part", settings=settings, progress=interrupt)
    steps: list[int] = []
    again = tune_graph(
        graph,
        other,
        solved,
        text,
        work_dir=tmp_path / "part",
        settings=settings,
        progress=lambda done, _total: steps.append(done),
    )
    assert steps == [5, 6]
    for weight in whole.graph:
        np.testing.assert_array_equal(weight.read(), again.graph.weights[weight.name].read(), err_msg=weight.name)
    assert len(list((tmp_path / "part").iterdir())) == 1


@pytest.mark.parametrize(("losing", "fraction"), [(0, 1.0), (1, 0.5), (2, 0.25), (3, None)])
def test_it_goes_as_far_as_no_kind_of_text_loses(
    losing: int,
    fraction: float | None,
    model_graph: Callable[[str], Graph],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    graph = model_graph("tied")
    other, solved = quantized(graph, AFFINE)
    kinds, text = np.zeros(24, np.int8), pieces(graph, 16)
    kinds[:8] = KINDS.index("thinking")
    text = replace(text, kinds=[kinds] * len(text.held_back))
    settings = TuneSettings(batch_tokens=288, epochs=1, rate=3e-3)
    tried: list[Graph] = []

    def losses(_graph: Graph, _expected: object, side: Graph, final: list[Tensor]) -> Tensor:
        """All gain but 32 positions, which lose as often as they shall."""
        found_P = torch.ones(24 * len(final), dtype=torch.float64)
        if side is other:
            return found_P
        tried.append(side)
        found_P[...] = 0.5
        # The same in all pieces: there is no chance in it.
        found_P[torch.from_numpy(np.tile(kinds, len(final)) != 0)] = 1.01 if len(tried) <= losing else 0.99
        return found_P

    monkeypatch.setattr(module, "divergences", losses)
    found = tune_graph(graph, other, solved, text, work_dir=tmp_path, settings=settings)
    # They are too few to tell.
    assert (found.keeps_solved, found.fraction) == (False, 1.0)
    monkeypatch.setattr(module, "LEAST_POSITIONS", 32)
    tried.clear()
    found = tune_graph(graph, other, solved, text, work_dir=tmp_path, settings=settings)
    assert found.measured < found.measured_before
    assert set(found.losses) == {"text", "thinking"}
    assert found.keeps_solved == (fraction is None)
    if fraction is None:
        assert found.graph is other
        return
    assert found.fraction == fraction
    name = graph[Role(Kind.NORM)].name
    whole, part, before = (side.weights[name].read() for side in (tried[0], found.graph, other))
    np.testing.assert_allclose(part - before, fraction * (whole - before), rtol=1e-2, atol=1e-6)


def test_a_standard_error_is_taken_over_pieces() -> None:
    """Against the textbook's, where all positions of a piece are the same and pieces have equally many."""
    means = np.random.default_rng(0).normal(size=12)
    found = module._standard_error(np.repeat(means, 5), np.repeat(np.arange(12), 5))
    assert found == pytest.approx(means.std(ddof=1) / np.sqrt(12))
    assert module._standard_error(means, np.zeros(12, np.int64)) == 0.0


def test_a_norm_changes_by_a_part_of_itself(model_graph: Callable[[str], Graph]) -> None:
    graph = model_graph("tied")
    parameters = Parameters.of(graph, {})
    assert set(parameters.changes) == {weight.name for weight in graph if weight.role.is_norm}
    found = {name: np.ones_like(changes) for name, changes in parameters.changes.items()}
    for step in range(1, 5):
        parameters.move(found, rate=0.3, step=step)
    name = next(iter(found))
    np.testing.assert_allclose(parameters.changes[name], -MOST_OF_A_NORM)
    expected = graph.weights[name].read() * np.float32(1 - MOST_OF_A_NORM)
    np.testing.assert_allclose(parameters.tuned().weights[name].read(), expected, rtol=1e-6)


@pytest.fixture(scope="module")
def demo() -> Model:
    return load(str(DEMO))


def test_dialogues_are_added_where_the_text_has_none(demo: Model, text: Path) -> None:
    plain = tuning_text(api.calibration_text(text, demo, sequence_length=128), demo.tokenizer)
    sample = tuning_text(api.calibration_text(None, demo), demo.tokenizer)
    for found, length in ((plain, 128), (sample, 256)):
        kinds = np.concatenate(found.kinds)
        assert all((kinds == kind).sum() >= 64 for kind in (1, 2))
        assert {len(piece) for piece in (*found.seen, *found.held_back)} == {length}
        assert len(kinds) == sum(map(len, found.held_back))
    # The sample is made of dialogues: nothing is added.
    assert sample.num_tokens + 256 * len(sample.held_back) == 32768


def test_a_text_that_is_too_short_is_refused(demo: Model) -> None:
    alone = Calibration(windows=(np.arange(100),), source="short.txt", seed=0)
    with pytest.raises(CalibrationError, match="too few to tune on"):
        tuning_text(alone, demo.tokenizer)


def test_the_forecast_grows_with_the_model(demo: Model, tmp_path: Path, text: Path) -> None:
    chosen = tuning_text(api.calibration_text(text, demo, sequence_length=128), demo.tokenizer)
    formats: dict[str, NumberFormat] = {weight.name: AFFINE for weight in demo.graph}
    whole = tuning_forecast(demo.graph, formats, chosen, threads=2)
    tiny = load(write_model(tmp_path / "tiny", "tied")).graph
    less = tuning_forecast(tiny, {weight.name: AFFINE for weight in tiny}, chosen, threads=2)
    assert whole.memory_bytes > less.memory_bytes
    assert whole.disk_bytes > less.disk_bytes
    coarse = AffineFormat(num_bits=4)
    channels = tuning_forecast(demo.graph, {weight.name: coarse for weight in demo.graph}, chosen, threads=2)
    assert channels.disk_bytes < whole.disk_bytes / 4


@pytest.mark.parametrize("method", ["rtn", "awq"])
def test_it_is_for_codes_that_were_solved(method: str, demo: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="`tune` goes on from codes"):
        api.plan(demo, "gguf", "q4_k_m", out=tmp_path / "m.gguf", method=method, tune=True)  # type: ignore[arg-type]
