"""Measure integer formats and methods on one model, in the way other quantizers of Qwen3 are measured.

    python benchmarks/integer_formats.py --model demo --calibration calibration.txt --samples 64 \\
        --windows WINDOWS.json [--per-source N] [--only int4_g128/gptq …] [--weights NAME=FOLDER …] [--json F]

Matrices of the layers are quantized; embedding, head and norms stay as they are. Scales are float16. ``w8a8`` has int8
weights per channel, and the evaluation rounds the input of each of them to int8 with one scale per token. Each graph is
made by its own process, so seconds and peak memory belong to it, with the start included. ``--weights`` evaluates a
checkpoint of dequantized weights from another tool (``peers_llm_compressor.py``); if its name begins with w8a8, inputs
are rounded too. WINDOWS is as for ``quality.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from evaluation import Windows, compare, read_windows, used_resources
from safetensors.torch import save_file
from torch import Tensor

from qwen3_export.calibration.awq.run import awq_graph
from qwen3_export.calibration.awq.search import search_layer
from qwen3_export.calibration.gptq.sequential import gptq_graph
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.folder import open_checkpoint
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.graph import Graph, Weight
from qwen3_export.quantizers.activations import round_symmetric
from qwen3_export.quantizers.affine import AffineFormat
from qwen3_export.quantizers.floats import BF16, F32
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.palette import PaletteFormat
from qwen3_export.quantizers.transforms import fold
from qwen3_export.quantizers.weights.rounded import RoundedWeight, round_graph
from qwen3_export.reference.weights import embed

CHANNEL = AffineFormat(num_bits=8, scale_dtype="f16")
FORMATS: Mapping[str, NumberFormat] = {
    "int4_g128": AffineFormat(num_bits=4, group_size=128, scale_dtype="f16"),
    "int4_g128_asym": AffineFormat(num_bits=4, group_size=128, symmetric=False, scale_dtype="f16"),
    "int4_g32": AffineFormat(num_bits=4, group_size=32, scale_dtype="f16"),
    "int8_channel": CHANNEL,
    "w8a8": CHANNEL,
    "palette4": PaletteFormat(num_bits=4),
}
METHODS = ("rtn", "awq", "gptq", "smoothquant", "smoothquant+gptq")
W8A8_ONLY = ("smoothquant", "smoothquant+gptq")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantized graph; numbers are means over the sources of text, and seconds are None if unknown."""

    format: str
    method: str
    mean_kld: float
    p99_kld: float
    same_top1: float
    seconds: float | None
    cpu_seconds: float | None
    peak_memory_bytes: float | None


def main() -> None:
    arguments = _arguments()
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it once: see quality.py
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    model = load(arguments.model)
    if arguments.make:
        _make(arguments, model)
        return
    if arguments.write_tokens:
        text = read_calibration(arguments.calibration, model.tokenizer, num_samples=arguments.samples)
        arguments.write_tokens.write_text(json.dumps([window_T.tolist() for window_T in text.windows]))
        return
    windows = read_windows(arguments.windows, model, per_source=arguments.per_source)
    rows = []
    print(f"{'format':15} {'method':17} {'KLD':>9} {'p99':>9} {'top-1':>6} {'s':>6} {'cpu s':>6} {'MB':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for cell in _cells(arguments.only):
            rows.append(_run(arguments, model, windows, *cell, folder=Path(folder)))
            print(_line(rows[-1]), flush=True)
    for name, made in (pair.split("=", 1) for pair in arguments.weights):
        rows.append(_evaluate(model, windows, Path(made), name=name))
        print(_line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


def _cells(only: Sequence[str] | None) -> list[tuple[str, str]]:
    if only is not None:
        return [(cell.split("/")[0], cell.split("/")[1]) for cell in only]
    return [(name, method) for name in FORMATS for method in METHODS if name == "w8a8" or method not in W8A8_ONLY]


def _run(
    arguments: argparse.Namespace, model: Model, windows: Windows, format_name: str, method: str, *, folder: Path
) -> Row:
    """Make one graph in its own process, and evaluate it."""
    out = folder / f"{format_name}-{method}.safetensors"
    command = [sys.executable, __file__, "--make", str(out), "--model", arguments.model]
    command += ["--only", f"{format_name}/{method}", "--samples", str(arguments.samples)]
    command += ["--calibration", str(arguments.calibration)] if arguments.calibration else []
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    took = json.loads(done.stdout.splitlines()[-1])
    stored = _with_values(model.graph, out)
    return _row(model, windows, stored, name=format_name, method=method, took={**took, "seconds": seconds})


def _evaluate(model: Model, windows: Windows, folder: Path, *, name: str) -> Row:
    """Evaluate a checkpoint made by another tool, with its time in ``took.json`` beside it if known."""
    report = folder / "took.json"
    took = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    format_name, _, method = name.partition("/")
    return _row(model, windows, open_checkpoint(folder), name=format_name, method=method, took=took)


def _row(model: Model, windows: Windows, stored: Graph, *, name: str, method: str, took: Mapping[str, float]) -> Row:
    rounding = _round_layer_inputs if name.startswith("w8a8") else None
    found = [compare(model.graph, stored, texts, round_activations=rounding) for texts in windows.values()]
    return Row(
        format=name,
        method=method,
        mean_kld=statistics.fmean(result["mean_kld"] for result in found),
        p99_kld=statistics.fmean(result["p99_kld"] for result in found),
        same_top1=statistics.fmean(result["same_top1"] for result in found),
        seconds=took.get("seconds"),
        cpu_seconds=took.get("cpu_seconds"),
        peak_memory_bytes=took.get("peak_memory_bytes"),
    )


def _round_layer_inputs(x_TI: Tensor, weight: Weight) -> Tensor:
    return round_symmetric(x_TI) if weight.role.layer is not None else x_TI


def _make(arguments: argparse.Namespace, model: Model) -> None:
    """Make one graph in this process, write its values, and print the resources that it used."""
    ((format_name, method),) = _cells(arguments.only)
    number_format = FORMATS[format_name]
    quantized = [weight.name for weight in model.graph if weight.role.layer is not None and len(weight.shape) == 2]
    with tempfile.TemporaryDirectory() as work_dir:
        graph = _quantized(
            arguments, model, dict.fromkeys(quantized, number_format), method=method, work_dir=Path(work_dir)
        )
        # Norms too: AWQ and SmoothQuant move scales into them.
        inside = [weight for weight in graph if weight.role.layer is not None]
        save_file({weight.name: torch.from_numpy(weight.read().copy()) for weight in inside}, arguments.make)
    print(json.dumps(used_resources()))


def _quantized(
    arguments: argparse.Namespace, model: Model, formats: dict[str, NumberFormat], *, method: str, work_dir: Path
) -> Graph:
    graph = model.graph
    if method == "rtn":
        return round_graph(graph, formats)
    windows = read_calibration(arguments.calibration, model.tokenizer, num_samples=arguments.samples).windows
    everything: dict[str, NumberFormat] = {
        weight.name: formats.get(weight.name, BF16 if weight.format == "BF16" else F32) for weight in graph
    }
    if method == "awq":
        return awq_graph(graph, everything, windows, work_dir=work_dir).graph
    importance: dict[str, np.ndarray] = {}
    if method.startswith("smoothquant"):
        tokens = [torch.from_numpy(window_T) for window_T in windows[:: max(1, len(windows) // 8)]]
        graph, importance = _smoothed(graph, tokens, formats)
        everything = {name: F32 if found == BF16 else found for name, found in everything.items()}
    if method == "smoothquant":
        return round_graph(graph, formats, importance=importance)
    return gptq_graph(graph, everything, windows, work_dir=work_dir)[0]


def _smoothed(
    graph: Graph, tokens: Sequence[Tensor], formats: Mapping[str, NumberFormat]
) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph with SmoothQuant's scales moved in every layer, and what columns weigh then."""

    def rounding(weight: Weight, vector: np.ndarray | None) -> Weight:
        return RoundedWeight(source=weight, number_format=formats[weight.name], importance=vector)

    hidden, scales, importance = [embed(graph, tokens_T) for tokens_T in tokens], {}, {}
    for layer in range(graph.config.num_hidden_layers):
        found, hidden = search_layer(
            graph,
            layer,
            hidden=hidden,
            rounding=rounding,
            rule="smoothquant",
            round_activations=_round_layer_inputs,
        )
        scales |= found.scales
        importance |= found.importance
    return fold(graph, scales), importance


@dataclass(frozen=True)
class _Given:
    """A weight with values from elsewhere."""

    weight: Weight
    values: Tensor

    def __getattr__(self, name: str) -> object:
        return getattr(self.weight, name)

    def read(self, rows: slice = slice(None)) -> object:
        return self.values[rows].numpy()


def _with_values(graph: Graph, path: Path) -> Graph:
    from safetensors.torch import load_file

    values = load_file(path)
    return graph.with_weights(
        {name: _Given(weight, values[name]) if name in values else weight for name, weight in graph.weights.items()}  # type: ignore[misc]
    )


def _line(row: Row) -> str:
    def shown(value: float | None, scale: float = 1.0) -> str:
        return "–" if value is None else f"{value / scale:.1f}"

    return (
        f"{row.format:15} {row.method:17} {row.mean_kld:9.2e} {row.p99_kld:9.2e} {100 * row.same_top1:6.2f} "
        f"{shown(row.seconds):>6} {shown(row.cpu_seconds):>6} {shown(row.peak_memory_bytes, 1e6):>6}"
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--windows", type=Path)
    parser.add_argument("--per-source", type=int)
    parser.add_argument("--write-tokens", type=Path, help="write the calibration tokens here, and do no more")
    parser.add_argument("--only", nargs="*", metavar="FORMAT/METHOD")
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.make or arguments.write_tokens or arguments.windows):
        parser.error("--windows is needed")
    return arguments


if __name__ == "__main__":
    main()
