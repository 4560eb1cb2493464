"""Run GPTQ on one layer at true shapes, and compare seconds and peak memory with the forecast.

    python benchmarks/random_checkpoint.py 4b FOLDER --layers 1
    python benchmarks/gptq_layer_speed.py FOLDER --layers 36 [--samples 64] [--experts 8]

The layer is solved into Q4_K_M's formats on the package's sample; embedding and head stay as they are. ``--layers`` is
the number of layers of the whole model: its time is that many times the layer's. ``--experts`` solves a mixture of only
this many experts. Each of them sees as many tokens as it would among all, and the layer's time is scaled up.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from evaluation import used_resources

from qwen3_export.calibration.gptq.forecast import gptq_forecast
from qwen3_export.calibration.gptq.sequential import gptq_graph
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import load
from qwen3_export.graph import Graph, Kind
from qwen3_export.parallel import default_threads
from qwen3_export.quantizers.floats import BF16
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.targets.gguf.names import gguf_tensors
from qwen3_export.targets.gguf.recipes import assign, find_recipe


def main() -> None:
    arguments = _arguments()
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it once: see quality.py
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    model = load(arguments.model)
    graph, scale = _fewer_experts(model.graph, arguments.experts)
    windows = read_calibration(None, model.tokenizer, num_samples=arguments.samples).windows
    if scale > 1:
        windows = windows[: max(2, round(len(windows) / scale))]
    tensors = gguf_tensors(graph)
    formats: dict[str, NumberFormat] = {**assign(find_recipe("q4_k_m"), graph.config, tensors, has_imatrix=True)}
    formats |= {weight.name: BF16 for weight in graph if weight.role.kind in (Kind.EMBED_TOKENS, Kind.LM_HEAD)}
    expected = gptq_forecast(graph, formats, windows, threads=default_threads())
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=arguments.model.parent) as work_dir:
        gptq_graph(graph, formats, windows, work_dir=Path(work_dir))
    seconds, took = time.perf_counter() - started, used_resources()
    print(f"{graph.name}: {sum(map(len, windows)):,} tokens, {graph.config.num_experts or 'no'} experts")
    print(f"measured: {seconds:.0f} s, {took['cpu_seconds']:.0f} s of CPU, {took['peak_memory_bytes'] / 1e9:.2f} GB")
    print(f"forecast: {expected.seconds:.0f} s, {expected.memory_bytes / 1e9:.2f} GB")
    layers = f"{arguments.layers} layers" + ("" if scale == 1 else f" of {scale:g} times the experts, scaled")
    print(f"so {layers} take about {scale * arguments.layers * seconds / 3600:.1f} h")


def _fewer_experts(graph: Graph, experts: int | None) -> tuple[Graph, float]:
    """The graph with only the first few experts, and the factor by which it had more."""
    total = graph.config.num_experts
    if experts is None or total == 0:
        return graph, 1.0
    kept = {weight.name: weight for weight in graph if (weight.role.expert or 0) < experts}
    for name, weight in kept.items():
        if weight.role.kind is Kind.ROUTER:
            kept[name] = _FirstRows(weight, experts)  # type: ignore[assignment]
    active = min(graph.config.num_experts_per_tok, experts)
    config = replace(graph.config, num_experts=experts, num_experts_per_tok=active)
    return replace(graph, config=config, weights=kept), total / experts


class _FirstRows:
    """The first rows of a weight."""

    def __init__(self, weight: object, rows: int) -> None:
        self._weight, self._rows = weight, rows

    def __getattr__(self, name: str) -> object:
        return getattr(self._weight, name)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self._rows, *self._weight.shape[1:])  # type: ignore[attr-defined]

    def read(self, rows: slice = slice(None)) -> object:
        first, last, _ = rows.indices(self._rows)
        return self._weight.read(slice(first, last))  # type: ignore[attr-defined]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--experts", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
