"""Compare ONNX folders, ours or others', with the checkpoint: KL divergence in onnxruntime as they are shipped.

    qwen3-export onnx --model demo --quant int4 --method gptq --calibration calibration.txt --samples 64 --out ours
    python -m onnxruntime_genai.models.builder -m MODEL -o theirs -p int4 -e cpu
    python benchmarks/onnx_quality.py --model demo --windows WINDOWS.json [--per-source N] ours theirs

WINDOWS is as for ``quality.py``.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from evaluation import read_windows

from qwen3_export.checkpoint.model import load
from qwen3_export.graph import Graph
from qwen3_export.parity.compare import compare_exact
from qwen3_export.parity.metrics import Comparison
from qwen3_export.targets.onnx.run import OnnxSession


def main() -> None:
    arguments = _arguments()
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it once: see quality.py
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    torch.set_num_threads(os.cpu_count() or 1)
    model = load(arguments.model)
    windows = read_windows(arguments.windows, model, per_source=arguments.per_source)
    print(f"{'folder':34} {'bytes':>11} {'KLD':>9} {'p99':>9} {'top-1':>6}")
    for folder in arguments.folders:
        graph_file = next(iter([*folder.glob("*.onnx"), *folder.glob("onnx/*.onnx")]))
        session = OnnxSession(graph_file, model.graph.config)
        found = [_compare(model.graph, texts, session) for texts in windows.values()]
        size = sum(path.stat().st_size for path in graph_file.parent.glob(f"{graph_file.name}*"))
        means = [
            statistics.fmean(getattr(result, key) for result in found) for key in ("mean_kld", "p99_kld", "same_top1")
        ]
        print(f"{folder!s:34} {size:11,} {means[0]:9.2e} {means[1]:9.2e} {100 * means[2]:6.2f}", flush=True)


def _compare(graph: Graph, texts: Sequence[Sequence[int]], session: OnnxSession) -> Comparison:
    return compare_exact(graph, texts, session.logits)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--per-source", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    main()
