"""Compare formats given where they count with the recipe's own, at the same bytes, on text that no choice has seen.

    python benchmarks/allocation.py --model demo --quant q4_k_m q3_k_m q2_k --calibration calibration.txt \\
        --samples 64 --windows WINDOWS.json [--method gptq] [--llama] [--work FOLDER]
    python benchmarks/allocation.py --target onnx --quant int4 …

WINDOWS is as in quality.py. Each artifact is made by the command, in its own process. Every number is the mean over the
sources, of the stored values in fp32 arithmetic; the interval is that of the paired difference in percent, 95 %,
clustered by document (``--sources wiki=FILE`` tells where a source's documents begin; see window_documents.py). Then
the same for each source. Bytes are those of whole artifacts, without their tokenizers; seconds are of the whole export
without its check.

Shapes: P positions, V vocabulary
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from evaluation import Windows, klds_by_text, read_windows
from intervals import paired_difference
from quality import through_llama
from window_documents import documents_of, source_file

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.targets.documents import TOKENIZER_DOCUMENTS
from qwen3_export.targets.registry import TARGETS, find_target

# Mean KL divergence of each window, by source.
Losses = Mapping[str, np.ndarray]


def main() -> None:
    arguments = _arguments()
    model = load(arguments.model)
    windows = read_windows(arguments.windows, model, per_source=None)
    documents = documents_of(windows, model, dict(arguments.sources))
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.work or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for recipe in arguments.quant:
            plain, chosen = (_made(arguments, recipe, folder, allocates=allocates) for allocates in (False, True))
            losses = [_losses(arguments.target, path, model, windows) for path, _ in (plain, chosen)]
            found = paired_difference(*losses, documents)
            line = f"{recipe:8} {found.before:.3e} -> {found.after:.3e} ({found})"
            sizes = f"{_bytes(plain[0]):,} -> {_bytes(chosen[0]):,} bytes"
            print(f"{line}, {sizes}, {plain[1]:.0f} -> {chosen[1]:.0f} s", flush=True)
            means = (f"{source} {' -> '.join(f'{side[source].mean():.2e}' for side in losses)}" for source in windows)
            print(f"{'':8} {', '.join(means)}", flush=True)
            if arguments.llama:
                through = [through_llama(path, model.graph, windows) for path, _ in (plain, chosen)]
                print(f"{'':8} through llama.cpp {through[0]:.3e} -> {through[1]:.3e}", flush=True)


def _made(arguments: argparse.Namespace, recipe: str, folder: Path, *, allocates: bool) -> tuple[Path, float]:
    """The artifact that the command makes, and its seconds."""
    target = find_target(arguments.target)
    suffix = ".gguf" if target.name == "gguf" else ""
    out = folder / f"{target.name}-{recipe}-{'chosen' if allocates else 'recipe'}{suffix}"
    command = [sys.executable, "-m", "qwen3_export.cli.main", target.name, "--model", arguments.model]
    command += ["--quant", recipe]
    command += ["--method", arguments.method, "--out", str(out), "--no-check", "--force"]
    if allocates:
        command.append("--allocate")
    if allocates or arguments.method != "rtn":
        command += ["--calibration", str(arguments.calibration)] if arguments.calibration else []
        command += ["--samples", str(arguments.samples)]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return out, time.perf_counter() - started


def _bytes(path: Path) -> int:
    files = (file for file in path.rglob("*") if file.is_file()) if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.name not in TOKENIZER_DOCUMENTS)


def _losses(target: str, path: Path, model: Model, windows: Windows) -> Losses:
    stored = find_target(target).doors.read(path, model.graph)
    return {source: np.array(klds_by_text(model.graph, stored, texts)) for source, texts in windows.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--target", default="gguf", choices=tuple(TARGETS))
    parser.add_argument("--quant", nargs="+", help="recipes; the target's usual one by default")
    parser.add_argument("--method", default="gptq", choices=("rtn", "awq", "gptq"))
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument("--sources", nargs="+", default=[], type=source_file, metavar="SOURCE=FILE")
    parser.add_argument("--llama", action="store_true", help="GGUF files through llama.cpp, too")
    parser.add_argument("--work", type=Path, help="keep the files here")
    arguments = parser.parse_args()
    if arguments.llama and arguments.target != "gguf":
        parser.error("--llama is for --target gguf")
    arguments.quant = arguments.quant or [find_target(arguments.target).default_recipe]
    return arguments


if __name__ == "__main__":
    main()
