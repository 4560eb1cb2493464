"""Measure what knowledge of QK-Norm gains: three ideas, each on and off, for one model.

    python benchmarks/qk_norm.py --model demo --calibration calibration.txt --samples 64 --windows WINDOWS.json \\
        [--per-source N] [--only hessian loss keys] [--json F]

    hessian   GPTQ into Q4_K_M. An error of q_proj or k_proj counts as 1 / rms² of its head, averaged over heads, or for
              each KV group separately.
    loss      AWQ into int4 groups of 128. α of input_layernorm is judged on the layer's output, after norm and RoPE, or
              on q, k and v directly after their weights.
    keys      Exact scales between q_norm and k_norm, equal within each pair that RoPE rotates: none; scales that give
              all channels of keys one size; scales that give keys and queries the same size, channel by channel.
              Measured with fp32 weights in llama.cpp, which keeps keys as Q8_0 and as Q4_0 (and, in newer releases,
              rotates them before, unless LLAMA_ATTN_ROT_DISABLE is set).

Numbers are mean KL divergences from the checkpoint in fp32, averaged over the sources. ``strong_norms.py`` makes a
model with strong norm weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluation import Windows, compare, read_windows
from numpy.typing import NDArray

from qwen3_export.calibration.awq.run import awq_graph
from qwen3_export.calibration.gptq.sequential import SequentialSettings, gptq_graph
from qwen3_export.calibration.key_balance import balance_keys, sizes_of_keys_and_queries
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.graph import Graph
from qwen3_export.parity.metrics import kl_divergence
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import F32
from qwen3_export.quantizers.transforms import Fold, Pair, fold
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.reference.model import forward, head_logits
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.llama import open_model
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.names import gguf_tensors
from qwen3_export.targets.gguf.recipes import assign, find_recipe

INT4 = AffineFormat(num_bits=4, group_size=128, symmetric=False, scale_dtype="f16")
Tokens = Sequence[NDArray[np.int64]]


def main() -> None:
    arguments = _arguments()
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it once: see quality.py
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    model = load(arguments.model)
    windows = read_windows(arguments.windows, model, per_source=arguments.per_source)
    tokens = read_calibration(arguments.calibration, model.tokenizer, num_samples=arguments.samples).windows
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for idea in arguments.only:
            for setting, kld in IDEAS[idea](model, windows, tokens, Path(folder)):
                rows.append({"idea": idea, "setting": setting, "mean_kld": kld})
                print(f"{idea:8} {setting:40} {kld:9.3e}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


def weighted_hessians(model: Model, windows: Windows, tokens: Tokens, folder: Path) -> Iterator[tuple[str, float]]:
    """Run GPTQ with each weighting of q_proj's and k_proj's Hessians."""
    graph, tensors = model.graph, gguf_tensors(model.graph)
    formats = assign(find_recipe("q4_k_m"), graph.config, tensors, has_imatrix=True)
    for weighting in ("off", "averaged", "grouped"):
        settings = SequentialSettings(qk_norm=weighting)  # type: ignore[arg-type]
        solved = gptq_graph(graph, formats, tokens, work_dir=folder, settings=settings)[0]
        yield f"1 / rms²: {weighting}", _mean_kld(graph, solved, windows)


def search_losses(model: Model, windows: Windows, tokens: Tokens, folder: Path) -> Iterator[tuple[str, float]]:
    """Run AWQ with α of input_layernorm judged before the norms, and after them."""
    graph = model.graph
    plain = {weight.name: "BF16" if weight.format == "BF16" else "F32" for weight in graph}
    matrices = {weight.name: INT4 for weight in graph if weight.role.layer is not None and len(weight.shape) == 2}
    for is_raw in (True, False):
        found = awq_graph(graph, plain | matrices, tokens, work_dir=folder, is_judged_raw=is_raw)
        yield ("judged on q, k, v" if is_raw else "judged after norm and RoPE"), _mean_kld(graph, found.graph, windows)


def balanced_keys(model: Model, windows: Windows, tokens: Tokens, folder: Path) -> Iterator[tuple[str, float]]:
    """Measure llama.cpp's quantized key cache, with channels of keys unchanged and balanced."""
    sizes = sizes_of_keys_and_queries(model.graph, tokens)
    even = {Fold(Pair.K_NORM, layer): k_H / np.exp(np.log(k_H).mean()) for layer, (k_H, _) in sizes.items()}
    for name, scales in {
        "as they are": {},
        "keys even": even,
        "keys like queries": balance_keys(model.graph, tokens),
    }.items():
        graph = fold(model.graph, scales)
        file = folder / "keys.gguf"
        metadata = build_metadata(model, Provenance(recipe="f32", file_type=0, method="rtn"))
        emit(plan_files(round_graph(graph, dict.fromkeys(graph.weights, F32)), metadata, file))
        for key_type in ("Q8_0", "Q4_0"):
            yield f"{name}, kept as {key_type}", _llama_kld(model.graph, file, windows, key_type=key_type)
        file.unlink()


def _mean_kld(original: Graph, stored: Graph, windows: Windows) -> float:
    return statistics.fmean(compare(original, stored, texts)["mean_kld"] for texts in windows.values())


def _llama_kld(original: Graph, file: Path, windows: Windows, *, key_type: str) -> float:
    longest = max(len(text) for texts in windows.values() for text in texts)
    means = []
    with open_model(file) as runtime, runtime.session(positions=longest, is_exact=True, key_type=key_type) as session:
        for texts in windows.values():
            hidden = forward(original, [torch.tensor(text) for text in texts])
            klds = [
                kl_divergence(head_logits(original, hidden_TD), torch.as_tensor(session.logits(text)))
                for text, hidden_TD in zip(texts, hidden, strict=True)
            ]
            means.append(float(torch.cat(klds).mean()))
    return statistics.fmean(means)


IDEAS: Mapping[str, Any] = {"hessian": weighted_hessians, "loss": search_losses, "keys": balanced_keys}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--per-source", type=int)
    parser.add_argument("--only", nargs="+", default=list(IDEAS), choices=list(IDEAS))
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
