"""Statistics as an importance matrix: llama.cpp's names and sums, and what its quantizer makes of them."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokens import random_tokens

from qwen3_export.calibration.collect import collect_statistics
from qwen3_export.calibration.statistics import Statistics
from qwen3_export.calibration.work_folder import open_work_folder
from qwen3_export.checkpoint.model import load
from qwen3_export.graph import Graph, Kind, Role
from qwen3_export.quantizers.floats import F32
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.reference.model import forward
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.imatrix import check_fits, read_imatrix, write_imatrix
from qwen3_export.targets.gguf.importance import importance_entries
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.names import gguf_tensors

WINDOWS = [random_tokens(48, seed=seed).numpy() for seed in range(2)]


@pytest.fixture
def measured(model_graph: Callable[[str], Graph], tmp_path: Path) -> Callable[[str], Statistics]:
    def measure(name: str) -> Statistics:
        work = open_work_folder(tmp_path / name, model_graph(name), windows=WINDOWS)
        return collect_statistics(model_graph(name), WINDOWS, dataset="random", work=work, max_tokens=1000)

    return measure


@pytest.mark.parametrize("name", ["tied", "untied", "moe", "moe_cold"])
def test_it_covers_every_matrix_of_the_file(name: str, model_graph, measured, tmp_path: Path) -> None:
    graph = model_graph(name)
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, importance_entries(graph, measured(name)), datasets=["random"], chunks=2, chunk_size=48)
    imatrix = read_imatrix(path)
    tensors = gguf_tensors(graph)
    check_fits(imatrix, tensors)
    multiplied = {tensor.name for tensor in tensors if len(tensor.shape) > 1}
    assert multiplied - imatrix.entries.keys() == (set() if name == "tied" else {"token_embd.weight"})


def test_sums_are_those_of_the_tokens_that_met_the_matrix(model_graph, measured) -> None:
    """What llama-imatrix sums: x² over tokens, by column, and for an expert over its own tokens."""
    graph = model_graph("moe")
    entries = importance_entries(graph, measured("moe"))
    seen: dict[Role, torch.Tensor] = {}

    def add(role: Role, _sequence: int, x_TI: torch.Tensor, _shares: torch.Tensor | None) -> None:
        seen[role] = seen.get(role, torch.zeros(x_TI.shape[-1], dtype=torch.float64)) + x_TI.double().square().sum(0)

    forward(graph, [torch.from_numpy(window) for window in WINDOWS], observe_inputs=add)
    up, out = entries["blk.1.ffn_up_exps.weight"], entries["blk.0.attn_output.weight"]
    for expert in range(8):
        np.testing.assert_allclose(up.sum_EI[expert], seen[Role(Kind.GATE_PROJ, 1, expert)], rtol=1e-6)
    assert up.count_E.sum() == 3 * 96
    np.testing.assert_allclose(out.sum_EI[0], seen[Role(Kind.O_PROJ, 0)], rtol=1e-6)
    assert out.count_E.tolist() == [96]
    np.testing.assert_array_equal(entries["blk.0.attn_v.weight"].sum_EI, entries["blk.0.attn_q.weight"].sum_EI)


@pytest.mark.parametrize("name", ["tied", "moe"])
def test_llama_cpp_quantizes_under_it(name: str, model_folder, measured, tmp_path: Path) -> None:
    """Every tensor that is covered, the tied embedding included, comes out otherwise than without."""
    llama_cpp = pytest.importorskip("llama_cpp")
    if not hasattr(llama_cpp, "llama_model_imatrix_data"):
        pytest.skip("this llama-cpp-python takes importance matrices as a C++ map only")
    model = load(model_folder(name))
    formats = dict.fromkeys(model.graph.weights, F32)
    source = tmp_path / "f32.gguf"
    metadata = build_metadata(model, Provenance(recipe="f32", file_type=0))
    emit(plan_files(round_graph(model.graph, formats), metadata, source))
    entries = importance_entries(model.graph, measured(name))
    means = {
        name: np.concatenate([entry.mean(expert) for expert in range(len(entry.count_E))])
        for name, entry in entries.items()
        if "ffn_gate_inp" not in name  # the router stays F32
    }
    plain = quantized(llama_cpp, source, tmp_path / "plain.gguf", {})
    weighted = quantized(llama_cpp, source, tmp_path / "weighted.gguf", means)
    assert not [name for name in means if np.array_equal(plain[name], weighted[name])]


def quantized(llama_cpp: Any, source: Path, target: Path, means: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The bytes of every tensor as llama.cpp quantizes it to Q4_0."""
    import gguf

    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, ctypes.c_void_p(0))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread, settings.pure = 2, 1, True
    if means:
        settings.imatrix = (llama_cpp.llama_model_imatrix_data * (len(means) + 1))()
        for entry, (name, values) in zip(settings.imatrix, means.items(), strict=False):
            entry.name, entry.size = name.encode(), len(values)
            entry.data = (ctypes.c_float * len(values))(*values)
    failed = llama_cpp.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(settings))
    llama_cpp.llama_log_set(llama_cpp.llama_log_callback(0), ctypes.c_void_p(0))
    assert not failed
    return {tensor.name: tensor.data.copy() for tensor in gguf.GGUFReader(target).tensors}
