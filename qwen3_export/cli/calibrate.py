"""``qwen3-export calibrate``: what no recipe changes, measured once for every target."""

from __future__ import annotations

import time
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING

from qwen3_export.cli.console import progress, say
from qwen3_export.cli.interrupted import Interrupted
from qwen3_export.cli.options import (
    CalibrationOption,
    DryRunOption,
    ForceOption,
    ModelOption,
    OfflineOption,
    OutOption,
    ResumeOption,
    RevisionOption,
    SamplesOption,
    SeedOption,
    SequenceLengthOption,
    ThreadsOption,
    WorkDirOption,
)
from qwen3_export.units import human_duration, human_size

if TYPE_CHECKING:
    from qwen3_export.calibration.forecast import Forecast
    from qwen3_export.calibration.statistics import ExpertCoverage, Statistics
    from qwen3_export.calibration.tokens import Calibration
    from qwen3_export.calibration.work_folder import WorkFolder
    from qwen3_export.checkpoint.model import Model

EPILOG = """Examples:

  qwen3-export calibrate --model demo

  qwen3-export gguf --model demo --quant q4_k_m --imatrix demo-imatrix.gguf

  qwen3-export calibrate --model Qwen3-1.7B --calibration our-texts.jsonl --work-dir /scratch --dry-run
"""

# Warnings of one kind that are shown one by one.
SHOWN = 3


def calibrate(
    model: ModelOption,
    calibration: CalibrationOption = None,
    sequence_length: SequenceLengthOption = 512,
    samples: SamplesOption = 128,
    seed: SeedOption = 0,
    out: OutOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    work_dir: WorkDirOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Measure what a text does to the model's activations, and write llama.cpp's importance matrix of it.

    Beside it lies a .safetensors file with more: mean and largest magnitudes, ranges of the residual stream, keys
    and queries, and how often each expert was asked.
    """
    from qwen3_export.calibration.tokens import read_calibration
    from qwen3_export.calibration.work_folder import open_work_folder
    from qwen3_export.checkpoint.model import load
    from qwen3_export.files.atomic import check_output
    from qwen3_export.files.recognise import is_imatrix, is_statistics
    from qwen3_export.parallel import use_threads

    use_threads(threads)
    opened = load(model, revision=revision, offline=offline)
    out = out or Path(f"{opened.name}-imatrix.gguf")
    if not dry_run:
        for path, is_ours in ((out, is_imatrix), (_beside(out), is_statistics)):
            check_output(path, overwrite=force, is_ours=is_ours, inputs=opened.files())
    text = read_calibration(
        calibration, opened.tokenizer, sequence_length=sequence_length, num_samples=samples, seed=seed
    )
    root = work_dir or out.with_name(f"{out.name}.work")
    work = open_work_folder(root, opened.graph, windows=text.windows)
    if not resume and not dry_run:
        work.remove()
    expected = _forecast(opened, text, work)
    if dry_run:
        print(f"would write {out} and {_beside(out)}")
        return
    try:
        statistics, seconds = _measure(opened, text, work, expected=expected)
    except Interrupted as interrupted:
        raise interrupted.keeping(work.path) from None
    _write(opened, statistics, out=out, force=force)
    work.remove()
    _print_result(statistics, out=out, seconds=seconds)


def _forecast(model: Model, text: Calibration, work: WorkFolder) -> Forecast:
    """Say what will be done, and what it will take."""
    from qwen3_export.calibration.forecast import forecast

    say(
        f"{model.name}: {sum(work.lengths):,} tokens in {len(work.lengths)} windows of {text.source}, "
        f"sha256 {text.digest[:16]}"
    )
    expected = forecast(model.graph, text.windows, done_layers=work.done_layers)
    say(
        f"forecast: {human_duration(expected.seconds)}, {human_size(expected.memory_bytes)} of memory, "
        f"{human_size(expected.disk_bytes)} of disk in {work.path.parent}"
    )
    if work.done_layers:
        say(f"going on after layer {work.done_layers} of {work.num_layers}, from {work.path}")
    else:
        say(f"if it is interrupted, the same command goes on where it ended, from {work.path}")
    return expected


def _measure(model: Model, text: Calibration, work: WorkFolder, *, expected: Forecast) -> tuple[Statistics, float]:
    """The statistics, and the seconds that they took."""
    from qwen3_export.calibration.collect import collect_statistics
    from qwen3_export.calibration.forecast import block_tokens, check_disk

    if not work.done_layers:
        check_disk(expected.disk_bytes, work.path)
    started = time.perf_counter()
    with progress("calibrating", work.num_layers * sum(work.lengths)) as advance:
        statistics = collect_statistics(
            model.graph,
            text.windows,
            dataset=text.source,
            work=work,
            max_tokens=block_tokens(model.graph),
            progress=advance,
        )
    return statistics, time.perf_counter() - started


def _write(model: Model, statistics: Statistics, *, out: Path, force: bool) -> None:
    from qwen3_export.calibration.statistics_file import write_statistics
    from qwen3_export.targets.gguf.imatrix import write_imatrix
    from qwen3_export.targets.gguf.importance import importance_entries

    origin = statistics.origin
    write_statistics(_beside(out), statistics, overwrite=force)
    write_imatrix(
        out,
        importance_entries(model.graph, statistics),
        datasets=[f"{origin.dataset} (tokens sha256 {origin.tokens[:16]})"],
        chunks=origin.windows,
        chunk_size=origin.num_tokens // origin.windows,
        overwrite=force,
    )


def _beside(out: Path) -> Path:
    return out.with_name(f"{out.name.removesuffix('.gguf')}.safetensors")


def _print_result(statistics: Statistics, *, out: Path, seconds: float) -> None:
    from qwen3_export.calibration.fp16 import fp16_warnings

    origin = statistics.origin
    for path in (out, _beside(out)):
        print(f"wrote {path} ({human_size(path.stat().st_size)})")
    print(f"{origin.num_tokens:,} tokens of {origin.dataset}, sha256 {origin.tokens[:16]}, {seconds:.1f} s")
    print(_ranges(statistics))
    coverage = statistics.expert_coverage()
    if coverage:
        print(_coverage_line(coverage))
    warnings = fp16_warnings(statistics)
    for kind in (False, True):
        found = [str(warning) for warning in warnings if warning.is_square is kind]
        for line in found[:SHOWN]:
            print(f"fp16: {line}")
        if len(found) > SHOWN:
            print(f"fp16: and {len(found) - SHOWN} more such places")
    print(f"use it: qwen3-export gguf --model {origin.model} --quant q4_k_m --imatrix {out}")


def _ranges(statistics: Statistics) -> str:
    from qwen3_export.calibration.fp16 import RESIDUAL

    stream = {site: found for site, found in statistics.states.items() if site.place in RESIDUAL}
    site, found = max(stream.items(), key=lambda item: item[1].largest)
    keys = max(keys.largest for keys in statistics.key_ranges.values())
    return (
        f"residual stream up to {found.largest:,.1f} ({site}, channel {found.largest_column}), keys up to {keys:,.1f}"
    )


def _coverage_line(coverage: list[ExpertCoverage]) -> str:
    total = sum(len(part.seen.count_E) for part in coverage)
    unseen = [f"layer {part.layer} expert {expert}" for part in coverage for expert in part.unseen]
    rare = sum(len(part.rare) for part in coverage)
    fewest = min(int(part.seen.count_E.min()) for part in coverage)
    line = (
        f"experts: {total - len(unseen):,} of {total:,} were asked, the least of them {fewest:,} times; {rare} rarely"
    )
    if unseen:
        more = f" and {len(unseen) - SHOWN} more" if len(unseen) > SHOWN else ""
        line += f"\nnot calibrated, no token was sent there: {', '.join(unseen[:SHOWN])}{more}; more text would help"
    return line


calibrate.__doc__ = f"{cleandoc(calibrate.__doc__ or '')}\n\n{EPILOG}"
