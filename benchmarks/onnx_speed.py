"""Compare folders for onnxruntime-genai: tokens a second of prefill and decoding, medians of alternating runs.

    python benchmarks/random_checkpoint.py 0.6b random --tokenizer FOLDER
    /usr/bin/time -v qwen3-export onnx --model random --quant int4 --no-check --out ours
    /usr/bin/time -v python -m onnxruntime_genai.models.builder -m random -o theirs -p int4 -e cpu
    python benchmarks/onnx_speed.py ours theirs [--prompt 128] [--new 64] [--runs 5]

Every run loads the folder in a new process, so that no two models share the processor's caches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    arguments = _arguments()
    if arguments.one:
        print(json.dumps(_measure(arguments.folders[0], prompt=arguments.prompt, new=arguments.new)))
        return
    found: dict[Path, list[dict[str, float]]] = {folder: [] for folder in arguments.folders}
    for _ in range(arguments.runs):
        for folder, runs in found.items():
            command = [sys.executable, __file__, str(folder), "--one"]
            command += ["--prompt", str(arguments.prompt), "--new", str(arguments.new)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'folder':30} {'load s':>7} {'prefill tokens/s':>17} {'decode tokens/s':>16}")
    for folder, runs in found.items():
        load, prefill, decode = (statistics.median(run[key] for run in runs) for key in ("load", "prefill", "decode"))
        print(f"{folder!s:30} {load:7.2f} {prefill:17.1f} {decode:16.1f}")


def _measure(folder: Path, *, prompt: int, new: int) -> dict[str, float]:
    import onnxruntime_genai as genai

    started = time.perf_counter()
    model = genai.Model(str(folder))
    loaded = time.perf_counter() - started
    for length in (8, prompt):  # the first is a warm-up
        params = genai.GeneratorParams(model)
        params.set_search_options(max_length=length + new + 1, min_length=length + new + 1, do_sample=False)
        generator = genai.Generator(model, params)
        started = time.perf_counter()
        generator.append_tokens([100 + i % 1000 for i in range(length)])
        generator.generate_next_token()
        prefilled = time.perf_counter()
        for _ in range(new):
            generator.generate_next_token()
        decoded = time.perf_counter()
    return {"load": loaded, "prefill": length / (prefilled - started), "decode": new / (decoded - prefilled)}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
