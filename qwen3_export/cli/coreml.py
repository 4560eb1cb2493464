"""``qwen3-export coreml``: a checkpoint to a proven .mlpackage for Apple's devices."""

from __future__ import annotations

import time
from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import human_count, human_size, progress, say
from qwen3_export.cli.exporting import Method, MethodOption, Solving, finish_with_check, open_model, written_folder
from qwen3_export.cli.options import (
    CalibrationOption,
    DryRunOption,
    ForceOption,
    ModelOption,
    NoCheckOption,
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

if TYPE_CHECKING:
    from qwen3_export.targets.coreml.export import CoremlExport

EPILOG = """Examples:

  qwen3-export coreml --model demo --quant int4

  qwen3-export coreml --model Qwen3-0.6B --quant palette4 --method gptq --context-length 1024

  qwen3-export coreml --model Qwen3-1.7B --quant int4 --channelwise --split-lm-head 16384
"""


class Target(str, Enum):
    """The oldest system that shall run the package."""

    IOS18 = "iOS18"
    MACOS15 = "macOS15"


def coreml(
    model: ModelOption,
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="The recipe; 'qwen3-export quants coreml' lists them.")
    ] = "int4",
    method: MethodOption = Method.RTN,
    block_size: Annotated[
        int, typer.Option("--block-size", help="Columns of int4 weights that share a scale: 16 to 256.")
    ] = 32,
    channelwise: Annotated[
        bool, typer.Option("--channelwise", help="One scale a row for int4: the form for the Neural Engine.")
    ] = False,
    context_length: Annotated[
        int | None,
        typer.Option(
            "--context-length",
            help="Positions that the package takes; 2048 by default, or the model's if it has fewer.",
            show_default=False,
        ),
    ] = None,
    split_lm_head: Annotated[
        int | None,
        typer.Option(
            "--split-lm-head", help="Multiply with the head in parts of so many rows, for phones.", show_default=False
        ),
    ] = None,
    fused_attention: Annotated[
        bool, typer.Option("--fused-attention", help="Core ML's own operator for attention, for GPUs.")
    ] = False,
    target: Annotated[Target, typer.Option("--target", help="The oldest system that shall run it.")] = Target.IOS18,
    calibration: CalibrationOption = None,
    out: OutOption = None,
    force: ForceOption = False,
    dry_run: DryRunOption = False,
    no_check: NoCheckOption = False,
    sequence_length: SequenceLengthOption = 512,
    samples: SamplesOption = 128,
    seed: SeedOption = 0,
    work_dir: WorkDirOption = None,
    resume: ResumeOption = True,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Write a folder with an .mlpackage for Core ML, and check it against the checkpoint on any machine."""
    from qwen3_export.targets.coreml.export import default_path, is_export_file, prepare, with_solution, write
    from qwen3_export.targets.coreml.recipes import find_recipe
    from qwen3_export.targets.coreml.transcript import write_transcript

    solving = Solving(
        method=method,
        calibration=calibration,
        sequence_length=sequence_length,
        samples=samples,
        seed=seed,
        work_dir=work_dir,
        resume=resume,
        threads=threads,
    )
    recipe = find_recipe(quant)
    opened = open_model(model, revision=revision, offline=offline)
    export = prepare(
        opened,
        recipe,
        out=out or default_path(opened, recipe),
        context_length=context_length,
        block_size=block_size,
        channelwise=channelwise,
        split_lm_head=split_lm_head,
        fused_attention=fused_attention,
        target=target.value,
    )
    say(_forecast(export))
    if dry_run:
        solving.forecast(export, solving.read_text(opened))
        print(_table(export))
        return
    started = time.perf_counter()
    ready_to_write = written_folder(
        export, solving, with_solution=with_solution, is_ours=is_export_file, checkpoint=opened, force=force
    )
    with ready_to_write as ready, progress("weights", ready.num_weights) as advance:
        write(ready, overwrite=force, threads=threads, progress=advance)
    print(f"wrote {export.out} ({export.package.name}: {human_size(export.num_bytes)})")
    print(f"{export.bits_per_weight:.2f} bits a weight, {time.perf_counter() - started:.1f} s")
    print("run it: with swift-transformers, or your own app; docs/coreml.md has the lines of Swift")
    if not no_check:
        write_transcript(export.out, opened)
        finish_with_check(export.out, export.out / "report.json", opened, threads=threads)


def _forecast(export: CoremlExport) -> str:
    return (
        f"{export.model.name}: {human_count(export.model.graph.num_parameters)} parameters to {export.recipe.name}, "
        f"{export.bits_per_weight:.2f} bits a weight, {human_size(export.num_bytes)}; writing takes about "
        f"{human_size(export.memory_bytes)} of memory"
    )


def _table(export: CoremlExport) -> str:
    rows = [
        f"{getattr(number_format, 'name', number_format):16} {list(export.graph.weights[name].shape)!s:18} {name}"
        for name, number_format in export.formats.items()
    ]
    return "\n".join([*rows, "", f"{human_size(export.num_bytes):>10}  {export.package}"])


coreml.__doc__ = f"{coreml.__doc__}\n\n{EPILOG}"
