"""Measure recipes and methods on one model: size, KL divergence, same-top-1, perplexity, seconds and peak memory.

    python benchmarks/quality.py --model demo --quant q4_k_m q3_k_m --method rtn imatrix awq gptq \\
        --calibration calibration.txt --samples 64 --windows WINDOWS.json [--per-source N] [--llama] \\
        [--json F] [--svg F]

WINDOWS is a list of {"src": name, "ids": [token ids]}, or a text file, which is cut into windows of 256 tokens and
counts as one source. Every number is the mean over the sources, in fp32 arithmetic over the values in the file; with
--llama, also as llama.cpp runs it. Each file is made by its own process, so seconds and peak memory belong to it.
Seconds include the start and all calibration; "cpu s" is the CPU time of the process.

Shapes: P positions, V vocabulary, D hidden
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from evaluation import Windows, compare, read_windows, used_resources
from torch import Tensor

from qwen3_export.calibration.awq.run import awq_graph
from qwen3_export.calibration.gptq.sequential import SequentialSettings, gptq_graph
from qwen3_export.calibration.tokens import read_calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.graph import Graph
from qwen3_export.quantizers.formats import NumberFormat
from qwen3_export.quantizers.weights.rounded import round_graph
from qwen3_export.reference.model import forward, head_logits
from qwen3_export.reference.probe import SHARED_INPUT
from qwen3_export.targets.gguf.emit import emit, plan_files
from qwen3_export.targets.gguf.metadata import Provenance, build_metadata
from qwen3_export.targets.gguf.names import gguf_tensors
from qwen3_export.targets.gguf.read import open_gguf, read_graph
from qwen3_export.targets.gguf.recipes import assign, find_recipe

METHODS = ("rtn", "imatrix", "awq", "gptq")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file; everything but size, time and memory is the mean over the sources."""

    recipe: str
    method: str
    size_bytes: int
    mean_kld: float
    p99_kld: float
    same_top1: float
    perplexity_ratio: float
    seconds: float
    cpu_seconds: float
    peak_memory_bytes: int
    llama_kld: float | None = None
    by_source: Mapping[str, float]


def main() -> None:
    arguments = _arguments()
    if "OMP_WAIT_POLICY" not in os.environ:
        # Torch's threads must sleep while they wait, or runs on a busy machine are extremely slow. Torch reads this
        # once.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    if arguments.make:
        _make(arguments)
        return
    model = load(arguments.model)
    windows = read_windows(arguments.windows, model, per_source=arguments.per_source)
    rows = []
    print(HEADER)
    with tempfile.TemporaryDirectory() as folder:
        for recipe in arguments.quant:
            for method in arguments.method:
                rows.append(_run(arguments, model, windows, recipe=recipe, method=method, folder=Path(folder)))
                print(_line(rows[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    if arguments.svg:
        arguments.svg.write_text(plot(rows), encoding="utf-8")


def _run(
    arguments: argparse.Namespace, model: Model, windows: Windows, *, recipe: str, method: str, folder: Path
) -> Row:
    """Make one file in its own process, and measure it."""
    out = folder / f"{recipe}-{method}.gguf"
    command = [sys.executable, __file__, "--make", str(out), "--model", arguments.model, "--quant", recipe]
    command += ["--method", method, "--samples", str(arguments.samples), "--length", str(arguments.length)]
    command += ["--qk-norm", arguments.qk_norm]
    command += ["--calibration", str(arguments.calibration)] if arguments.calibration else []
    started = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    made = json.loads(done.stdout.splitlines()[-1])
    stored = read_graph(open_gguf(out), model.graph)
    found = {source: compare(model.graph, stored, texts) for source, texts in windows.items()}
    row = Row(
        recipe=recipe,
        method=method,
        size_bytes=out.stat().st_size,
        mean_kld=_mean(result["mean_kld"] for result in found.values()),
        p99_kld=_mean(result["p99_kld"] for result in found.values()),
        same_top1=_mean(result["same_top1"] for result in found.values()),
        perplexity_ratio=_mean(result["perplexity_ratio"] for result in found.values()),
        seconds=seconds,
        cpu_seconds=made["cpu_seconds"],
        peak_memory_bytes=made["peak_memory_bytes"],
        llama_kld=through_llama(out, model.graph, windows) if arguments.llama else None,
        by_source={source: result["mean_kld"] for source, result in found.items()},
    )
    out.unlink()
    return row


def _make(arguments: argparse.Namespace) -> None:
    """Make one file in this process, and print the resources that it used."""
    model = load(arguments.model)
    recipe, tensors = find_recipe(arguments.quant[0]), gguf_tensors(model.graph)
    method = arguments.method[0]
    formats = assign(recipe, model.graph.config, tensors, has_imatrix=method != "rtn")
    with tempfile.TemporaryDirectory() as work_dir:
        graph = _quantized(arguments, model, formats, method=method, work_dir=Path(work_dir))
        metadata = build_metadata(model, Provenance(recipe=recipe.name, file_type=recipe.file_type, method=method))
        emit(plan_files(graph, metadata, arguments.make))
    print(json.dumps(used_resources()))


def _quantized(
    arguments: argparse.Namespace, model: Model, formats: Mapping[str, NumberFormat], *, method: str, work_dir: Path
) -> Graph:
    if method == "rtn":
        return round_graph(model.graph, formats)
    windows = read_calibration(
        arguments.calibration, model.tokenizer, num_samples=arguments.samples, sequence_length=arguments.length
    ).windows
    if method == "imatrix":
        return round_graph(model.graph, formats, importance=mean_squares(model.graph, windows))
    if method == "awq":
        return awq_graph(model.graph, formats, windows, work_dir=work_dir).graph
    settings = SequentialSettings(qk_norm=arguments.qk_norm)
    return gptq_graph(model.graph, formats, windows, work_dir=work_dir, settings=settings)[0]


def mean_squares(graph: Graph, windows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The contents of llama.cpp's importance matrix: mean squared activations, by weight name."""
    sums: dict[object, Tensor] = {}
    forward(
        graph,
        [torch.from_numpy(window_T) for window_T in windows],
        observe_inputs=lambda role, _i, x_TI, _shares: sums.update(
            {role: sums.get(role, torch.zeros(x_TI.shape[1])) + x_TI.square().sum(dim=0)}
        ),
    )
    found = {}
    for weight in graph:
        role = weight.role
        shared = type(role)(SHARED_INPUT.get(role.kind, role.kind), role.layer, role.expert)
        if shared in sums and sums[shared].any():
            found[weight.name] = (sums[shared] / sum(map(len, windows))).numpy()
    return found


def through_llama(file: Path, original: Graph, windows: Windows) -> float:
    """KL divergence of llama.cpp running the file, against the checkpoint in fp32."""
    from qwen3_export.parity.metrics import kl_divergence
    from qwen3_export.targets.gguf.llama import open_model

    longest = max(len(ids) for texts in windows.values() for ids in texts)
    means = []
    with open_model(file, threads=1) as runtime, runtime.session(positions=longest) as session:
        for texts in windows.values():
            klds = [
                kl_divergence(head_logits(original, hidden_TD), torch.as_tensor(session.logits(text)))
                for text, hidden_TD in zip(texts, forward(original, [torch.tensor(t) for t in texts]), strict=True)
            ]
            means.append(float(torch.cat(klds).mean()))
    return statistics.fmean(means)


HEADER = (
    f"{'recipe':8} {'method':8} {'bytes':>11} {'KLD':>9} {'p99':>9} {'top-1':>6} {'ppl':>7} {'s':>6} {'cpu s':>6} "
    f"{'MB':>5}  by source"
)


def _line(row: Row) -> str:
    sources = ", ".join(f"{source} {kld:.2e}" for source, kld in row.by_source.items())
    llama = "" if row.llama_kld is None else f"  llama.cpp {row.llama_kld:.2e}"
    return (
        f"{row.recipe:8} {row.method:8} {row.size_bytes:11,} {row.mean_kld:9.2e} {row.p99_kld:9.2e} "
        f"{100 * row.same_top1:6.2f} {row.perplexity_ratio:7.4f} {row.seconds:6.1f} {row.cpu_seconds:6.1f} "
        f"{row.peak_memory_bytes / 1e6:5.0f}  {sources}{llama}"
    )


COLOURS = {"rtn": "#888888", "imatrix": "#3070c0", "awq": "#309050", "gptq": "#d04020"}
WIDTH, HEIGHT, MARGIN = 720, 420, 60


def plot(rows: Sequence[Row]) -> str:
    """Plot size against mean KL divergence (logarithmic), one line per method, as SVG."""
    sizes, logs = [row.size_bytes for row in rows], [math.log10(row.mean_kld) for row in rows]
    low, high = math.floor(min(logs)), math.ceil(max(logs))
    span = max(sizes) - min(sizes) or 1

    def at(row: Row) -> tuple[float, float]:
        x = MARGIN + (row.size_bytes - min(sizes)) / span * (WIDTH - 2 * MARGIN)
        y = MARGIN + (high - math.log10(row.mean_kld)) / max(high - low, 1) * (HEIGHT - 2 * MARGIN)
        return round(x, 1), round(y, 1)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">']
    for power in range(low, high + 1):
        y = MARGIN + (high - power) / max(high - low, 1) * (HEIGHT - 2 * MARGIN)
        parts.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="8" y="{y + 4}" font-size="12">1e{power}</text>')
    for i, method in enumerate(dict.fromkeys(row.method for row in rows)):
        chosen = sorted((row for row in rows if row.method == method), key=lambda row: row.size_bytes)
        colour = COLOURS[method]
        points = " ".join(f"{x},{y}" for x, y in map(at, chosen))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}"/>')
        parts.append(f'<text x="{MARGIN + 90 * i}" y="24" font-size="14" fill="{colour}">{method}</text>')
        for row in chosen:
            x, y = at(row)
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
            parts.append(f'<text x="{x + 5}" y="{y - 5}" font-size="10">{row.recipe}</text>')
    parts.append(
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 16}" font-size="12">bytes: {min(sizes):,} to {max(sizes):,}</text>'
    )
    return "\n".join([*parts, "</svg>\n"])


def _mean(values: Iterator[float]) -> float:
    return statistics.fmean(values)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--quant", nargs="+", default=["q4_k_m"])
    parser.add_argument("--method", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--qk-norm", default=SequentialSettings().qk_norm)
    parser.add_argument("--windows", type=Path)
    parser.add_argument("--per-source", type=int)
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.make and not arguments.windows:
        parser.error("--windows is needed")
    return arguments


if __name__ == "__main__":
    main()
