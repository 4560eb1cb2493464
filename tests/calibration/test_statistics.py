"""Statistics equal a plain computation over the whole model, whatever the blocks, interruptions and storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
from models import COLD_EXPERT, write_model
from numpy.typing import NDArray
from tokens import random_tokens

from qwen3_export.calibration.collect import collect_statistics
from qwen3_export.calibration.columns import ColumnStatistics
from qwen3_export.calibration.digests import checkpoint_digest, token_digest
from qwen3_export.calibration.statistics import Statistics
from qwen3_export.calibration.statistics_file import FIELDS, read_statistics, write_statistics
from qwen3_export.calibration.work_folder import open_work_folder
from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.errors import CheckpointError, OutputError
from qwen3_export.graph import Graph, Kind, Role, Weight
from qwen3_export.reference.model import forward
from qwen3_export.reference.probe import Place, Site

Windows = Sequence[NDArray[np.int64]]

# Sums in fp32 within a window, against fp64 throughout.
SUM_TOLERANCE = 2e-6

WINDOWS: Windows = [random_tokens(length, seed=length).numpy() for length in (24, 17, 31, 8)]


def collect(graph: Graph, root: Path, *, windows: Windows = WINDOWS, max_tokens: int = 10_000) -> Statistics:
    work = open_work_folder(root, graph, windows=windows)
    return collect_statistics(graph, windows, dataset="random", work=work, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def dense(model_graph: Callable[[str], Graph], tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return collect(model_graph("tied"), tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="module")
def moe(model_graph: Callable[[str], Graph], tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    return collect(model_graph("moe_cold"), tmp_path_factory.mktemp("moe"))


def assert_same(one: Statistics, other: Statistics) -> None:
    """Equal to the last bit, in the same order."""
    assert one.origin == other.origin
    for mine, theirs in ((one.inputs, other.inputs), (one.states, other.states)):
        assert list(mine) == list(theirs)
        for key, found in mine.items():
            for attribute, _ in FIELDS.values():
                np.testing.assert_array_equal(
                    getattr(found, attribute), getattr(theirs[key], attribute), err_msg=f"{key} {attribute}"
                )


# Numbers


@pytest.mark.parametrize("name", ["tied", "untied", "moe", "moe_with_dense_layers"])
def test_inputs_equal_a_plain_computation(name: str, model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph(name)
    seen: dict[Role, list[torch.Tensor]] = {}
    shares: dict[Role, list[torch.Tensor]] = {}

    def keep(role: Role, _sequence: int, x_TI: torch.Tensor, shares_T: torch.Tensor | None) -> None:
        seen.setdefault(role, []).append(x_TI.double())
        shares.setdefault(role, []).append(torch.ones(len(x_TI)) if shares_T is None else shares_T)

    forward(graph, [torch.from_numpy(window_T) for window_T in WINDOWS], observe_inputs=keep)
    statistics = collect(graph, tmp_path)
    for role, parts in seen.items():
        x_TI, found = torch.cat(parts).numpy(), statistics.of(role)
        np.testing.assert_allclose(found.sum_of_squares_EI[0], (x_TI**2).sum(0), rtol=SUM_TOLERANCE)
        np.testing.assert_allclose(found.sum_of_magnitudes_EI[0], np.abs(x_TI).sum(0), rtol=SUM_TOLERANCE)
        np.testing.assert_array_equal(found.max_magnitude_EI[0], np.abs(x_TI).max(0).astype(np.float32))
        assert found.count_E.tolist() == [len(x_TI)]
        weighed = torch.cat(shares[role]).double().square().sum().item()
        assert found.squared_shares_E[0] == pytest.approx(weighed, rel=SUM_TOLERANCE)


def test_a_naive_layer_without_the_probe(dense: Statistics, model_graph: Callable[[str], Graph]) -> None:
    """The input of the first layer's q_proj, from the embedding and the norm alone."""
    graph = model_graph("tied")
    embedding_VD = graph[Role(Kind.EMBED_TOKENS)].read().astype(np.float64)
    norm_D = graph[Role(Kind.INPUT_LAYERNORM, 0)].read().astype(np.float64)
    x_TD = embedding_VD[np.concatenate(WINDOWS)]
    h_TD = x_TD / np.sqrt((x_TD**2).mean(axis=1, keepdims=True) + graph.config.rms_norm_eps) * norm_D
    found = dense.of(Role(Kind.V_PROJ, 0))
    np.testing.assert_allclose(found.sum_of_squares_EI[0], (h_TD**2).sum(0), rtol=SUM_TOLERANCE)
    np.testing.assert_allclose(dense.states[Site(Place.INPUT, 0)].largest, np.abs(x_TD).max())


def test_states_equal_a_plain_computation(dense: Statistics, model_graph: Callable[[str], Graph]) -> None:
    seen: dict[Site, list[torch.Tensor]] = {}
    forward(
        model_graph("tied"),
        [torch.from_numpy(window_T) for window_T in WINDOWS],
        observe=lambda site, _sequence, state: seen.setdefault(site, []).append(state),
    )
    assert seen.keys() - dense.states.keys() == {Site(Place.FINAL)}  # which is the head's input
    for site, found in dense.states.items():
        state = torch.cat(seen[site])
        heads_TNH = state if state.ndim == 3 else state[:, None]
        np.testing.assert_array_equal(found.max_magnitude_EI, heads_TNH.abs().amax(0).numpy())
        np.testing.assert_allclose(found.sum_of_squares_EI, heads_TNH.double().square().sum(0), rtol=SUM_TOLERANCE)
    config = model_graph("tied").config
    assert dense.key_ranges[1].max_magnitude_EI.shape == (config.num_key_value_heads, config.head_dim)


def test_weights_that_share_an_input_share_statistics(dense: Statistics, moe: Statistics) -> None:
    assert dense.of(Role(Kind.K_PROJ, 1)) is dense.of(Role(Kind.Q_PROJ, 1))
    assert dense.of(Role(Kind.UP_PROJ, 1)) is dense.of(Role(Kind.GATE_PROJ, 1))
    assert moe.of(Role(Kind.UP_PROJ, 1)).sum_of_squares_EI.shape == (8, 256)
    assert moe.of(Role(Kind.UP_PROJ, 1, 5)).sum_of_squares_EI.shape == (1, 256)
    assert moe.of(Role(Kind.ROUTER, 1)).count_E.tolist() == [sum(map(len, WINDOWS))]
    with pytest.raises(KeyError):
        dense.of(Role(Kind.NORM))


def test_the_head_is_covered_tied_or_not(dense: Statistics, moe: Statistics) -> None:
    tokens = sum(map(len, WINDOWS))
    assert dense.of(Role(Kind.EMBED_TOKENS)).count_E.tolist() == [tokens]
    assert moe.of(Role(Kind.LM_HEAD)).count_E.tolist() == [tokens]


def test_sums_over_nothing_are_zero(moe: Statistics) -> None:
    cold = moe.of(Role(Kind.DOWN_PROJ, 0, COLD_EXPERT))
    assert cold.count_E.tolist() == [0]
    assert not cold.sum_of_squares_EI.any()
    assert not cold.sum_of_magnitudes_EI.any()
    assert moe.of(Role(Kind.DOWN_PROJ, 0, COLD_EXPERT + 1)).sum_of_squares_EI.all()


def test_coverage_names_the_experts_that_saw_nothing(moe: Statistics, dense: Statistics) -> None:
    coverage = moe.expert_coverage()
    assert [part.layer for part in coverage] == [0, 1]
    for part in coverage:
        assert part.unseen == [COLD_EXPERT]
        assert part.seen.count_E.sum() == 3 * sum(map(len, WINDOWS))  # each token goes to three experts
    rare = replace(coverage[0], seen=replace(coverage[0].seen, count_E=np.array([40, 2, 0, 50, 4, 60, 40, 44])))
    assert (rare.unseen, rare.rare) == ([2], [1])
    assert dense.expert_coverage() == []


# Streaming


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_blocks_do_not_change_a_bit(name: str, model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    whole = collect(model_graph(name), tmp_path / "a")
    for max_tokens in (1, 30):
        assert_same(whole, collect(model_graph(name), tmp_path / str(max_tokens), max_tokens=max_tokens))


class Killed(BaseException):
    """Stands in for a kill: nothing catches it."""


@pytest.mark.parametrize("stop_at", [5, 80, 81, 159], ids=["in layer 0", "after it", "in layer 1", "near the end"])
@pytest.mark.parametrize("name", ["tied", "moe"])
def test_a_killed_run_goes_on_to_the_same_bits(
    name: str, stop_at: int, model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    graph = model_graph(name)
    undisturbed = collect(graph, tmp_path / "a")
    work, done = open_work_folder(tmp_path / "b", graph, windows=WINDOWS), 0

    def die(amount: int) -> None:
        nonlocal done
        done += amount
        if done >= stop_at:
            raise Killed

    with pytest.raises(Killed):
        collect_statistics(graph, WINDOWS, dataset="random", work=work, max_tokens=1, progress=die)
    steps: list[int] = []
    resumed = collect_statistics(graph, WINDOWS, dataset="random", work=work, max_tokens=1, progress=steps.append)
    assert_same(undisturbed, resumed)
    assert sum(steps) == 2 * sum(map(len, WINDOWS))
    assert steps[0] == (80 if stop_at > 80 else 0)  # layer 0 is not run again


def test_a_finished_run_is_not_run_again(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = collect(model_graph("tied"), tmp_path)
    monkeypatch.delattr("qwen3_export.calibration.collect.run_layer")
    assert_same(first, collect(model_graph("tied"), tmp_path))


def test_damage_in_the_work_folder_costs_time_and_nothing_else(
    model_graph: Callable[[str], Graph], tmp_path: Path
) -> None:
    first = collect(model_graph("tied"), tmp_path)
    (hidden,) = tmp_path.glob("*/hidden-0002.f32")
    hidden.write_bytes(hidden.read_bytes()[:-4])
    assert_same(first, collect(model_graph("tied"), tmp_path))


def test_the_folder_is_named_by_what_the_run_depends_on(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(graph: Graph, windows: Windows = WINDOWS) -> str:
        return open_work_folder(tmp_path, graph, windows=windows).path.name

    tied = model_graph("tied")
    usual = key(tied)
    assert usual == key(tied)
    assert usual != key(model_graph("untied"))
    assert usual != key(tied, WINDOWS[:-1])
    assert usual != key(tied, [*WINDOWS[:-1], WINDOWS[-1][::-1].copy()])
    assert usual != key(tied, [np.concatenate(WINDOWS)])
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert usual != key(tied)
    assert not list(tmp_path.iterdir())


def test_digests_follow_content_and_not_place(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    here = open_checkpoint(model_folder("tied"))
    assert checkpoint_digest(here) == checkpoint_digest(open_checkpoint(write_model(tmp_path / "copy", "tied")))
    assert checkpoint_digest(here) == checkpoint_digest(open_checkpoint(model_folder("sharded")))
    assert checkpoint_digest(here) != checkpoint_digest(open_checkpoint(write_model(tmp_path / "b", "tied", seed=1)))
    assert checkpoint_digest(here) != checkpoint_digest(open_checkpoint(model_folder("yarn")))
    assert token_digest([np.array([1, 2]), np.array([3])]) != token_digest([np.array([1]), np.array([2, 3])])


def test_a_full_disk_is_one_sentence(
    model_graph: Callable[[str], Graph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwen3_export.files.atomic.shutil.disk_usage", lambda _: Usage())
    with pytest.raises(OutputError, match=r"hidden-0000\.f32: the disk is full"):
        collect(model_graph("tied"), tmp_path)


class Usage:
    free = 1000


# Storage


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_what_is_written_is_read_back(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    statistics: Statistics = request.getfixturevalue(name)
    write_statistics(tmp_path / "a.safetensors", statistics)
    write_statistics(tmp_path / "b.safetensors", read_statistics(tmp_path / "a.safetensors"))
    assert_same(statistics, read_statistics(tmp_path / "a.safetensors"))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_other_tools_can_read_the_file(dense: Statistics, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    write_statistics(tmp_path / "a.safetensors", dense)
    arrays = load_file(tmp_path / "a.safetensors")
    wanted = dense.of(Role(Kind.DOWN_PROJ, 1)).sum_of_squares_EI
    np.testing.assert_array_equal(arrays["input.down_proj.1.sum_of_squares"], wanted)
    assert arrays["state.k_rope.0.max_magnitude"].shape == (2, 64)
    assert asdict(dense.origin)["num_tokens"] == 80


def test_foreign_and_damaged_files_are_refused(dense: Statistics, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "a.safetensors"
    save_file({"x": np.ones(3)}, path)
    with pytest.raises(CheckpointError, match="holds no calibration statistics"):
        read_statistics(path)
    with pytest.raises(OutputError, match="was not written by an export"):
        write_statistics(path, dense, overwrite=True)
    path.unlink()
    write_statistics(path, dense)
    with pytest.raises(OutputError, match="exists already"):
        write_statistics(path, dense)
    write_statistics(path, dense, overwrite=True)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_statistics(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_statistics(tmp_path / "absent")


def test_activations_that_overflow_fp32_are_refused(model_graph: Callable[[str], Graph], tmp_path: Path) -> None:
    graph = model_graph("tied")
    huge = {
        name: Scaled(weight, 1e38) if weight.role == Role(Kind.O_PROJ, 1) else weight
        for name, weight in graph.weights.items()
    }
    with pytest.raises(CheckpointError, match="layer 1 attention: activations are not finite"):
        collect(replace(graph, weights=MappingProxyType(huge)), tmp_path)


class Scaled:
    """A weight whose values have run away."""

    def __init__(self, weight: Weight, factor: float) -> None:
        self.name, self.role, self.shape, self.format = weight.name, weight.role, weight.shape, weight.format
        self._weight, self._factor = weight, np.float32(factor)

    def read(self, rows: slice = slice(None)) -> np.ndarray:
        return self._weight.read(rows) * self._factor


def test_columns_of_one_expert() -> None:
    count = np.array([2, 5])
    both = ColumnStatistics(
        sum_of_squares_EI=np.array([[8, 2], [5, 10]], np.float32),
        sum_of_magnitudes_EI=np.array([[4, 2], [5, 5]], np.float32),
        max_magnitude_EI=np.array([[2, 1], [1, 7]], np.float32),
        count_E=count,
        squared_shares_E=np.array([0.5, 1.5], np.float32),
    )
    assert (both.largest, both.largest_column) == (7, 1)
    assert both.expert(0).largest == 2
    np.testing.assert_array_equal(both.expert(1).sum_of_squares_EI, [[5, 10]])
