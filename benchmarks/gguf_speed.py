"""Measure speed and memory of the GGUF export and of libllama's own quantizer, in one run.

    python benchmarks/gguf_speed.py FOLDER [--quant q4_k_m] [--threads 2] [--repeat 3] [--json FILE]

FOLDER is a checkpoint, such as one from ``benchmarks/random_checkpoint.py``. Our export goes from its safetensors to
the finished file. libllama's ``llama_model_quantize`` starts from a bf16 GGUF that was converted before (that time is
not counted). Both write to the same disk with the same number of threads, in separate processes, taking turns. Wall and
CPU seconds and the peak resident size are the kernel's. "cold" is the very first run, which compiles the kernels into
an empty cache.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

PEER = """
import ctypes, sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.nthread, params.ftype = int(sys.argv[4]), int(sys.argv[3])
llama_cpp.llama_log_set(LOG := llama_cpp.llama_log_callback(lambda *_: None), ctypes.c_void_p())
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), ctypes.byref(params)))
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process: seconds of wall clock and of CPU, and its peak resident size."""

    wall: float
    cpu: float
    peak_bytes: int


def measure(command: Sequence[str], environment: dict[str, str] | None = None) -> Measured:
    """Run a command to its end; SystemExit if it fails."""
    started = time.perf_counter()
    process = os.posix_spawnp(
        command[0], list(command), {**os.environ, **(environment or {})},
        file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)],
    )  # fmt: skip
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"failed: {' '.join(command)}")
    scale = 1 if sys.platform == "darwin" else 1024
    return Measured(
        wall=time.perf_counter() - started, cpu=usage.ru_utime + usage.ru_stime, peak_bytes=usage.ru_maxrss * scale
    )


def export_command(model: Path, quant: str, out: Path, threads: int) -> list[str]:
    return [sys.executable, "-m", "qwen3_export.cli.main", "gguf", "--model", str(model), "--quant", quant,
            "--out", str(out), "--force", "--no-check", "--threads", str(threads)]  # fmt: skip


def median(runs: Sequence[Measured]) -> Measured:
    return Measured(
        wall=statistics.median(run.wall for run in runs),
        cpu=statistics.median(run.cpu for run in runs),
        peak_bytes=max(run.peak_bytes for run in runs),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--quant", default="q4_k_m")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--no-peer", action="store_true", help="measure ours alone (large models)")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as scratch:
        results = compare(arguments, Path(scratch))
    for name, run in results.items():
        print(f"{name:20} {run.wall:7.1f} s wall  {run.cpu:7.1f} s CPU  {run.peak_bytes / 1e6:8.0f} MB peak")
    if "libllama" in results:
        print(f"libllama / ours: wall {results['libllama'].wall / results['ours, warm'].wall:.2f}, "
              f"CPU {results['libllama'].cpu / results['ours, warm'].cpu:.2f}")  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps({name: asdict(run) for name, run in results.items()}, indent=2))


def compare(arguments: argparse.Namespace, scratch: Path) -> dict[str, Measured]:
    """Run ours cold, then ours warm and libllama in turn."""
    from qwen3_export.targets.gguf.recipes import find_recipe

    ours = export_command(arguments.model, arguments.quant, scratch / "ours.gguf", arguments.threads)
    cold = measure(ours, {"NUMBA_CACHE_DIR": str(scratch / "kernels")})
    source = scratch / "source.gguf"
    if not arguments.no_peer:
        measure(export_command(arguments.model, "bf16", source, arguments.threads))
    file_type = str(find_recipe(arguments.quant).file_type)
    peer = [sys.executable, "-c", PEER, str(source), str(scratch / "peer.gguf"), file_type, str(arguments.threads)]
    warm, theirs = [], []
    for _ in range(arguments.repeat):
        warm.append(measure(ours, {"NUMBA_CACHE_DIR": str(scratch / "kernels")}))
        if not arguments.no_peer:
            theirs.append(measure(peer))
    results = {"ours, cold": cold, "ours, warm": median(warm)}
    return results if arguments.no_peer else {**results, "libllama": median(theirs)}


if __name__ == "__main__":
    main()
