"""``qwen3-export onnx``: a checkpoint to a proven folder for onnxruntime-genai or transformers.js."""

from __future__ import annotations

import shlex
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
    from qwen3_export.targets.onnx.export import OnnxExport

EPILOG = """Examples:

  qwen3-export onnx --model demo --quant int4

  qwen3-export onnx --model demo --quant int4 --method gptq --block-size 64

  qwen3-export onnx --model Qwen3-0.6B --quant q4f16 --flavour transformers.js --out web/Qwen3-0.6B
"""


class FlavourName(str, Enum):
    """Whose conventions the folder follows."""

    GENAI = "genai"
    TRANSFORMERS_JS = "transformers.js"


def onnx(
    model: ModelOption,
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="The recipe; 'qwen3-export quants onnx' lists them.")
    ] = "int4",
    method: MethodOption = Method.RTN,
    flavour: Annotated[
        FlavourName, typer.Option("--flavour", help="For onnxruntime-genai and plain onnxruntime, or transformers.js.")
    ] = FlavourName.GENAI,
    block_size: Annotated[
        int, typer.Option("--block-size", help="Columns that share a scale: 16, 32, 64, 128 or 256.")
    ] = 32,
    asymmetric: Annotated[
        bool, typer.Option("--asymmetric", help="Give each block a zero point: a little larger and more accurate.")
    ] = False,
    accuracy_level: Annotated[
        int,
        typer.Option("--accuracy-level", help="4 lets CPUs round activations to int8, which is fast; 1 keeps fp32."),
    ] = 4,
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
    """Write a folder that onnxruntime-genai or transformers.js runs, and check it against the checkpoint."""
    from qwen3_export.targets.onnx.export import default_path, is_export_file, prepare, with_solution, write
    from qwen3_export.targets.onnx.recipes import find_recipe

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
        out=out or default_path(opened, recipe, flavour.value),
        flavour=flavour.value,
        block_size=block_size,
        is_symmetric=not asymmetric,
        accuracy_level=accuracy_level,
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
    with ready_to_write as ready, progress("writing", ready.num_weights) as advance:
        write(ready, overwrite=force, threads=threads, progress=advance)
    _print_result(export, time.perf_counter() - started)
    if not no_check:
        finish_with_check(export.out, export.out / "report.json", opened, threads=threads)


def _forecast(export: OnnxExport) -> str:
    return (
        f"{export.model.name}: {human_count(export.model.graph.num_parameters)} parameters to {export.recipe.name}, "
        f"{export.bits_per_weight:.2f} bits a weight, {human_size(export.num_bytes)}"
    )


def _table(export: OnnxExport) -> str:
    lines = [
        f"{place.dtype.strip('<|'):3} {list(place.shape)!s:22} {human_size(place.num_bytes):>10}  {place.name}"
        for parts in export.plan.initializers.values()
        for place in parts.values()
    ]
    return "\n".join([*lines, "", f"{human_size(export.num_bytes):>10}  {export.out / export.data_file}"])


def _print_result(export: OnnxExport, seconds: float) -> None:
    print(f"wrote {export.out} ({human_size(export.num_bytes)} of weights)")
    print(f"{export.bits_per_weight:.2f} bits a weight, {seconds:.1f} s")
    folder = shlex.quote(str(export.out))
    if export.flavour == "genai":
        print(f"run it: python -c \"import onnxruntime_genai as og; og.Model('{export.out}')\", or any genai app")
    else:
        print(f"run it: pipeline('text-generation', {folder!r}, {{ dtype: '{export.js_dtype}' }}) in transformers.js")


onnx.__doc__ = f"{onnx.__doc__}\n\n{EPILOG}"
