"""Measure every GGUF recipe on one model, and libllama's own file of the same recipe, by KL divergence.

    python benchmarks/recipes_table.py --model demo --windows WINDOWS.json [--quant q4_k_m …] [--imatrix F]

WINDOWS is a list of {"src": name, "ids": [token ids]}. There are two numbers for each file: ``quantization``, the fp32
reference over the stored values, and ``end_to_end``, llama.cpp running the file. Both are against the checkpoint in
fp32; each is the mean over the sources of the mean over positions, in nats. libllama quantizes from a bf16 GGUF with
``llama_model_quantize``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from qwen3_export.checkpoint.model import Model, load
from qwen3_export.parity.compare import compare_shipped
from qwen3_export.targets.gguf.emit import emit
from qwen3_export.targets.gguf.export import prepare
from qwen3_export.targets.gguf.imatrix import Imatrix, read_imatrix
from qwen3_export.targets.gguf.llama import open_model
from qwen3_export.targets.gguf.read import open_gguf, read_graph
from qwen3_export.targets.gguf.recipes import RECIPES, find_recipe
from qwen3_export.targets.gguf.target import GgufOptions

Windows = Mapping[str, Sequence[Sequence[int]]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One file: its size, the seconds for quantizing, and its loss (means over the sources)."""

    recipe: str
    maker: str
    size_bytes: int
    seconds: float
    quantization: float
    end_to_end: float
    p99: float
    same_top1: float


def read_windows(path: Path) -> Windows:
    """Read token windows by source."""
    windows: dict[str, list[list[int]]] = {}
    for entry in json.loads(path.read_text()):
        windows.setdefault(entry["src"], []).append(entry["ids"])
    return windows


def measure(file: Path, recipe: str, maker: str, seconds: float, *, model: Model, windows: Windows) -> Row:
    """Run one file over all windows."""
    stored = read_graph(open_gguf(file), model.graph)
    longest = max(len(ids) for texts in windows.values() for ids in texts)
    results = []
    with open_model(file, threads=1) as runtime, runtime.session(positions=longest) as session:
        for texts in windows.values():
            results.append(compare_shipped(model.graph, stored, texts, run=session.logits))
    return Row(
        recipe=recipe,
        maker=maker,
        size_bytes=file.stat().st_size,
        seconds=seconds,
        quantization=_mean(result.quantization.mean_kld for result in results),
        end_to_end=_mean(result.end_to_end.mean_kld for result in results),
        p99=_mean(result.end_to_end.p99_kld for result in results),
        same_top1=_mean(result.end_to_end.same_top1 for result in results),
    )


def _mean(values: object) -> float:
    return statistics.fmean(float(value) for value in values)


def make_ours(model: Model, quant: str, out: Path, imatrix: Imatrix | None) -> float:
    options = GgufOptions(imatrix=None if imatrix is None else imatrix.path)
    started = time.perf_counter()
    emit(prepare(model, find_recipe(quant), out=out, options=options).files)
    return time.perf_counter() - started


def make_theirs(source: Path, quant: str, out: Path, imatrix: Imatrix | None) -> float:
    """Run libllama's quantizer; the importance matrix is passed as its C structure."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = find_recipe(quant).file_type
    kept = _c_imatrix(llama_cpp, imatrix) if imatrix is not None else None
    if kept is not None:
        params.imatrix = ctypes.cast(kept[0], type(params.imatrix))
    started = time.perf_counter()
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)):
        sys.exit(f"libllama cannot make {quant}")
    return time.perf_counter() - started


def _c_imatrix(llama_cpp: object, imatrix: Imatrix) -> tuple[object, list[object]]:
    """An array of (name, values, count) that ends with a null name, and the objects that must outlive it."""
    kind = llama_cpp.llama_model_imatrix_data
    array = (kind * (len(imatrix.entries) + 1))()
    alive: list[object] = []
    for slot, (name, entry) in zip(array, imatrix.entries.items(), strict=False):
        means = [entry.mean(expert) for expert in range(len(entry.sum_EI))]
        values = np.ascontiguousarray(np.concatenate(means), np.float32)
        slot.name, slot.size = name.encode(), values.size
        slot.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        alive.append(values)
    return array, alive


def silence_libllama() -> object:
    import llama_cpp

    callback = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p())
    return callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--windows", type=Path, required=True)
    parser.add_argument(
        "--quant", nargs="*", default=[name for name, recipe in RECIPES.items() if not recipe.needs_imatrix]
    )
    parser.add_argument("--every", type=int, default=1, help="take every n-th window of each source")
    parser.add_argument("--imatrix", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    alive = silence_libllama()
    model, windows = load(arguments.model), read_windows(arguments.windows)
    windows = {source: texts[:: arguments.every] for source, texts in windows.items()}
    imatrix = read_imatrix(arguments.imatrix) if arguments.imatrix else None
    rows = []
    print(f"recipe   maker     {'bytes':>10} {'s':>5} {'quantization':>12} {'end to end':>11} {'p99':>9} {'top-1':>7}")
    with tempfile.TemporaryDirectory() as scratch:
        source, file = Path(scratch, "bf16.gguf"), Path(scratch, "file.gguf")
        make_ours(model, "bf16", source, None)
        for quant in arguments.quant:
            for maker in ("ours", "libllama"):
                file.unlink(missing_ok=True)
                made = (
                    make_ours(model, quant, file, imatrix)
                    if maker == "ours"
                    else make_theirs(source, quant, file, imatrix)
                )
                row = measure(file, quant, maker, made, model=model, windows=windows)
                rows.append(row)
                print(f"{quant:8} {maker:9} {row.size_bytes:10,} {row.seconds:5.1f} {row.quantization:12.3e} "
                      f"{row.end_to_end:11.3e} {row.p99:9.2e} {row.same_top1:7.2%}", flush=True)  # fmt: skip
    del alive
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
