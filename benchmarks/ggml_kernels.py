"""Compare our GGML encoders with llama.cpp's: error and speed, format by format.

    python benchmarks/ggml_kernels.py                      # every format
    python benchmarks/ggml_kernels.py Q4_K Q6_K --rows 64  # these, on 64 rows of each tensor
    python benchmarks/ggml_kernels.py --cold Q4_K Q6_K     # the cost of the first call on a new machine

Needs llama-cpp-python, whose bundled library exports ``ggml_quantize_chunk``. Weights are the demo model's matrices and
random ones (normal, and Student's t with 3 and 2 degrees of freedom). Importances are log-normal.

Error columns are ours / llama.cpp's, the mean over tensors and the worst tensor. ``theirs`` uses the weights that
llama.cpp minimizes; ``plain`` uses only the importance, or no weights. Below 1 is better than llama.cpp. Speed is CPU
time of one thread, the best of several alternating runs, so that other work on the machine has little effect.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen3_export.quantizers.ggml import GGML_FORMATS
from qwen3_export.targets.gguf.formats import TYPE_IDS

Values = NDArray[np.float32]
Doubles = NDArray[np.float64]
Quantizer = Callable[[str, Values, Values | None], NDArray[np.uint8]]

FORMATS = tuple(GGML_FORMATS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formats", nargs="*", default=FORMATS, metavar="FORMAT", help="Q4_K, Q6_K, …; default all")
    parser.add_argument("--rows", type=int, default=256, help="rows taken of each tensor")
    parser.add_argument("--cold", action="store_true", help="time the first call with an empty kernel cache instead")
    arguments = parser.parse_args()
    if arguments.cold:
        print_cold(arguments.formats)
    else:
        print_comparison(arguments.formats, rows=arguments.rows)


def print_cold(names: tuple[str, ...]) -> None:
    """Print CPU seconds for the first encode and decode of each format, in this order, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = folder
        for name in names:
            start = time.process_time()
            number_format = GGML_FORMATS[name]
            blocks = number_format.pack(*number_format.encode(np.ones((8, 256), np.float32)))
            number_format.dequantize(*number_format.unpack(blocks))
            print(f"{name:7} {time.process_time() - start:5.1f} s")


def print_comparison(names: tuple[str, ...], *, rows: int) -> None:
    quantize = load_llama_cpp()
    weights = demo_weights(rows) | random_weights(rows)
    print("format  importance  error, theirs    error, plain    million weights a second")
    print("                      mean   worst    mean   worst      ours  llama.cpp   ratio")
    for name in names:
        for important in (False, True):
            ratios = np.array([error_ratios(name, values, important, quantize) for values in weights.values()])
            ours, theirs = speeds(name, important, quantize)
            (mean, plain_mean), (worst, plain_worst) = ratios.mean(0), ratios.max(0)
            errors = f"{mean:7.3f} {worst:7.3f} {plain_mean:7.3f} {plain_worst:7.3f}"
            speed = f"{ours:9.1f} {theirs:10.1f} {ours / theirs:7.2f}"
            print(f"{name:7} {'yes' if important else 'no':10} {errors} {speed}", flush=True)


def load_llama_cpp() -> Quantizer:
    try:
        import llama_cpp
    except ImportError:
        sys.exit("llama-cpp-python is not installed; pip install 'qwen3-export[llama]'")
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(path for path in sorted(folder.iterdir()) if "ggml-base" in path.name)))
    function = library.ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def quantize(name: str, values: Values, importance: Values | None) -> NDArray[np.uint8]:
        rows, columns = values.shape
        blocks = np.empty((rows, GGML_FORMATS[name].row_bytes(columns)), np.uint8)
        address = None if importance is None else importance.ctypes.data
        function(TYPE_IDS[name], values.ctypes.data, blocks.ctypes.data, 0, rows, columns, address)
        return blocks

    return quantize


def demo_weights(rows: int) -> dict[str, Values]:
    """Matrices of the demo model whose rows are a multiple of 256."""
    from safetensors import safe_open

    import qwen3_export

    path = Path(qwen3_export.__file__).parent / "data" / "demo" / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
        return {
            name: np.ascontiguousarray(tensor[:rows].float().numpy())
            for name, tensor in tensors.items()
            if len(tensor.get_shape()) == 2 and tensor.get_shape()[1] % 256 == 0
        }


def random_weights(rows: int) -> dict[str, Values]:
    random = np.random.default_rng(7)
    shape = (rows, 1024)
    return {
        "normal": (random.standard_normal(shape) * 0.02).astype(np.float32),
        "heavy": (random.standard_t(3, shape) * 0.02).astype(np.float32),
        "heavier": (random.standard_t(2, shape) * 0.02).astype(np.float32),
    }


def importance_of(values: Values) -> Values:
    return np.random.default_rng(5).lognormal(size=values.shape[1]).astype(np.float32)


def error_ratios(name: str, values: Values, important: bool, quantize: Quantizer) -> tuple[float, float]:
    """Our error over llama.cpp's: with its weights, and without extra weight for large values."""
    number_format, x = GGML_FORMATS[name], values.astype(np.float64)
    importance = importance_of(values) if important else None
    ours = np.square(number_format.dequantize(*number_format.encode(values, importance)) - x)
    theirs = np.square(number_format.dequantize(*number_format.unpack(quantize(name, values, importance))) - x)
    plain = np.ones_like(x) if importance is None else np.broadcast_to(importance.astype(np.float64), x.shape)
    weights = plain * llama_cpp_lean(name, x, important=important)
    return float((weights * ours).sum() / (weights * theirs).sum()), float(
        (plain * ours).sum() / (plain * theirs).sum()
    )


def llama_cpp_lean(name: str, x: Doubles, *, important: bool) -> Doubles:
    """The factor by which llama.cpp's searches give large values more weight (``ggml-quants.c``)."""
    if important:
        if name == "Q6_K":
            return np.ones_like(x)
        extent = {"IQ4_NL": 32}.get(name, 256 if name.endswith(("_K", "_XS")) else x.shape[1])
        factor = 2 if name in ("Q3_K", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS") else 1
        return np.sqrt(factor * mean_square(x, extent) + np.square(x))
    if name in ("Q4_K", "Q5_K"):
        return np.sqrt(mean_square(x, 32)) + np.abs(x)
    if name == "Q2_K":
        return np.abs(x)
    return np.square(x) if name in ("Q3_K", "Q6_K", "IQ4_NL", "IQ4_XS") else np.ones_like(x)


def mean_square(x: Doubles, extent: int) -> Doubles:
    return np.repeat(np.square(x).reshape(x.shape[0], -1, extent).mean(-1), extent, axis=1)


def speeds(name: str, important: bool, quantize: Quantizer, *, repeats: int = 5) -> tuple[float, float]:
    """Million weights per second of one thread's CPU time: ours, llama.cpp's."""
    values = random_weights(256)["normal"]
    importance = importance_of(values) if important else None
    number_format, ours, theirs = GGML_FORMATS[name], [], []
    for _ in range(repeats):
        ours.append(cpu_seconds(lambda: number_format.pack(*number_format.encode(values, importance))))
        theirs.append(cpu_seconds(lambda: quantize(name, values, importance)))
    return values.size / min(ours) / 1e6, values.size / min(theirs) / 1e6


def cpu_seconds(call: Callable[[], object]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start


if __name__ == "__main__":
    main()
