"""Measure time, memory and size of a Core ML export and of the usual route, in one run.

    python benchmarks/random_checkpoint.py 0.6b random
    python benchmarks/coreml_export.py random [--threads 2] [--repeat 1] [--layers N] [--recipes int4 …] [--json FILE]

The usual route is ``coreml_usual_route.py``: a torch module that is traced, converted, and quantized by coremltools to
int4 in blocks of 32. coremltools rounds to nearest without a search for scales; ours searches them. Both read the same
safetensors and write to the same disk, in separate processes, taking turns. Wall and CPU seconds and the peak resident
size are the kernel's. ``--layers`` cuts the model for a quick look.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

USUAL = "usual int4"

OURS = """
import sys
from dataclasses import replace
from pathlib import Path
from qwen3_export.checkpoint.model import load
from qwen3_export.targets.coreml.export import prepare, write
from qwen3_export.targets.coreml.recipes import find_recipe
model, out, recipe, threads, layers = sys.argv[1:]
opened = load(model)
if int(layers):
    opened = replace(opened, graph=opened.graph.truncated(0, int(layers)))
write(prepare(opened, find_recipe(recipe), out=Path(out)), threads=int(threads))
"""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One process: seconds of wall clock and of CPU, its peak resident size, and the bytes of the package."""

    wall: float
    cpu: float
    peak_bytes: int
    num_bytes: int


def measure(command: Sequence[str], out: Path) -> Measured:
    """Run a command to its end; SystemExit if it fails."""
    shutil.rmtree(out, ignore_errors=True)
    started = time.perf_counter()
    quiet = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0) for descriptor in (1, 2)]
    process = os.posix_spawnp(command[0], list(command), dict(os.environ), file_actions=quiet)
    _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"failed: {' '.join(command)}")
    return Measured(
        wall=time.perf_counter() - started,
        cpu=usage.ru_utime + usage.ru_stime,
        peak_bytes=usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
        num_bytes=sum(path.stat().st_size for path in (out / "model.mlpackage").rglob("*") if path.is_file()),
    )


def command_of(side: str, model: Path, out: Path, *, threads: int, layers: int) -> list[str]:
    if side != USUAL:
        return [sys.executable, "-c", OURS, str(model), str(out), side, str(threads), str(layers)]
    script = Path(__file__).with_name("coreml_usual_route.py")
    options = ["--threads", str(threads), *(["--layers", str(layers)] if layers else [])]
    return [sys.executable, str(script), str(model), str(out), *options]


def row_of(side: str, runs: Sequence[Measured]) -> str:
    wall, cpu = (statistics.median(getattr(run, field) for run in runs) for field in ("wall", "cpu"))
    peak = max(run.peak_bytes for run in runs)
    return (
        f"{side:10} {wall:7.1f} s wall  {cpu:7.1f} s CPU  {peak / 1e9:6.2f} GB peak  {runs[-1].num_bytes / 1e6:8.1f} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--recipes", nargs="+", default=["int4", "int8", "palette4", "fp16"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--work", type=Path, help="where to write")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[Measured]] = {side: [] for side in [*arguments.recipes, USUAL]}
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        out = Path(work) / "out"
        for _ in range(arguments.repeat):
            for side, runs in found.items():
                command = command_of(side, arguments.model, out, threads=arguments.threads, layers=arguments.layers)
                runs.append(measure(command, out))
                print(row_of(side, runs), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({side: [asdict(run) for run in runs] for side, runs in found.items()}))


if __name__ == "__main__":
    main()
