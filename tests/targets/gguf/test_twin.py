"""F32 twins: the values and metadata of the file, whole or a window of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.parity.compare import compare_exact
from qwen3_export.targets.gguf import llama
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.read import GgufFile, open_gguf, read_graph
from qwen3_export.targets.gguf.recipes import find_recipe
from qwen3_export.targets.gguf.twin import PickedRows, Window, plan_windows, window_graph, write_twin

TEXTS = [[8157, 5, 900, 17, 8000], [42, 43]]


@pytest.fixture(scope="module")
def moe(model_folder: Callable[[str], Path]) -> Model:
    return load(model_folder("moe"))


@pytest.fixture(scope="module")
def moe_file(moe: Model, tmp_path_factory: pytest.TempPathFactory) -> GgufFile:
    path = tmp_path_factory.mktemp("twin") / "moe.gguf"
    emit(prepare(moe, find_recipe("q4_k_m"), out=path).files)
    return open_gguf(path)


def test_a_whole_twin_has_the_files_values_and_metadata(moe: Model, moe_file: GgufFile, tmp_path: Path) -> None:
    stored = read_graph(moe_file, moe.graph, decoder="gguf-py")
    write_twin(moe_file, stored, tmp_path / "twin.gguf", window=Window(first=0, count=2))
    twin = open_gguf(tmp_path / "twin.gguf")
    assert dict(twin.metadata) == {**moe_file.metadata, "general.file_type": 0}
    for weight in read_graph(twin, moe.graph):
        assert weight.format == "F32"
        np.testing.assert_array_equal(weight.read(), stored.weights[weight.name].read())


def test_a_window_runs_as_the_reference_says(moe: Model, moe_file: GgufFile, tmp_path: Path) -> None:
    pytest.importorskip("llama_cpp")
    (first, second) = plan_windows(moe.graph, TEXTS, max_bytes=1 << 20, is_full=True)
    assert [(window.first, window.count) for window in (first, second)] == [(0, 1), (1, 1)]
    write_twin(moe_file, read_graph(moe_file, moe.graph, decoder="gguf-py"), tmp_path / "twin.gguf", window=second)
    part = window_graph(read_graph(moe_file, moe.graph), second)
    texts = [second.token_ids(text) for text in TEXTS]
    with (
        llama.open_model(tmp_path / "twin.gguf", threads=1) as model,
        model.session(positions=8, is_exact=True) as session,
    ):
        assert model.vocab_size == part.config.vocab_size < moe.graph.config.vocab_size
        numbers = compare_exact(part, texts, session.logits)
    assert numbers.mean_kld < 1e-9


def test_windows_cover_every_layer_when_full_and_the_first_ones_when_quick(moe: Model) -> None:
    graph = moe.graph
    assert plan_windows(graph, TEXTS, max_bytes=1 << 30, is_full=False) == [Window(first=0, count=2)]
    (quick,) = plan_windows(graph, TEXTS, max_bytes=1, is_full=False)
    assert (quick.first, quick.count) == (0, 1)
    assert quick.vocabulary is not None
    assert {token for text in TEXTS for token in text} <= set(quick.vocabulary)
    assert [quick.vocabulary[i] for i in quick.token_ids(TEXTS[0])] == TEXTS[0]


def test_picked_rows(moe: Model) -> None:
    weight = moe.graph.head
    picked = PickedRows(source=weight, picked=(0, 1, 2, 70, 8191))
    assert picked.shape == (5, weight.shape[1])
    np.testing.assert_array_equal(picked.read(), weight.read()[[0, 1, 2, 70, 8191]])
    np.testing.assert_array_equal(picked.read(slice(2, 4)), weight.read()[[2, 70]])
    assert picked.read(slice(5, 9)).shape == (0, weight.shape[1])
