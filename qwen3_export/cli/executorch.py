"""``qwen3-export executorch``: a checkpoint to a proven .pte for the LLM runners on phones."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import human_count, human_size, say
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
    from qwen3_export.targets.executorch.export import ExecutorchExport

EPILOG = """Examples:

  qwen3-export executorch --model demo --quant 8da4w

  qwen3-export executorch --model Qwen3-0.6B --quant 8da4w --method gptq --max-seq-len 1024

  qwen3-export executorch --model Qwen3-1.7B --quant 8da4w --group-size 128 --embedding 4

  qwen3-export executorch --model Qwen3-0.6B --quant 8da8w --portable --max-seq-len 512
"""


def executorch(
    model: ModelOption,
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="The recipe; 'qwen3-export quants executorch' lists them.")
    ] = "8da4w",
    method: MethodOption = Method.RTN,
    group_size: Annotated[
        int, typer.Option("--group-size", help="Columns of int4 weights that share a scale: 32, 64, 128 or 256.")
    ] = 32,
    embedding: Annotated[
        int | None,
        typer.Option(
            "--embedding", help="Bits of the embedding: 4, 8 or 32; the recipe's by default.", show_default=False
        ),
    ] = None,
    max_seq_len: Annotated[
        int, typer.Option("--max-seq-len", help="Tokens at once, and positions unless --max-context-len is given.")
    ] = 2048,
    max_context_len: Annotated[
        int | None, typer.Option("--max-context-len", help="Positions that the KV cache holds.", show_default=False)
    ] = None,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable", help="Only operators that every runtime has: runs without the llama operators, and slower."
        ),
    ] = False,
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
    """Write a folder with a .pte for ExecuTorch's LLM runners, and check it against the checkpoint."""
    from qwen3_export.targets.executorch.export import default_path, is_export_file, prepare, with_solution, write
    from qwen3_export.targets.executorch.recipes import find_recipe

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
        group_size=group_size,
        embedding_bits=embedding,
        max_seq_len=max_seq_len,
        max_context_len=max_context_len,
        is_portable=portable,
    )
    say(_forecast(export))
    if opened.graph.config.tie_word_embeddings:
        say("note: the tied embedding is stored twice: to look tokens up, and as the head that XNNPACK multiplies with")
    if dry_run:
        solving.forecast(export, solving.read_text(opened))
        print(_table(export))
        return
    started = time.perf_counter()
    ready_to_write = written_folder(
        export, solving, with_solution=with_solution, is_ours=is_export_file, checkpoint=opened, force=force
    )
    with ready_to_write as ready:
        say("lowering to XNNPACK; this takes some seconds a layer")
        write(ready, overwrite=force)
    size = (export.out / "model.pte").stat().st_size
    print(f"wrote {export.out} (model.pte: {human_size(size)})")
    print(f"{8 * size / opened.graph.num_parameters:.2f} bits a weight, {time.perf_counter() - started:.1f} s")
    print("run it: with the LLM runner of ExecuTorch for iOS, Android or C++, model.pte and tokenizer.json")
    if not no_check:
        finish_with_check(export.out, export.out / "report.json", opened, threads=threads)


def _forecast(export: ExecutorchExport) -> str:
    return (
        f"{export.model.name}: {human_count(export.model.graph.num_parameters)} stored parameters to "
        f"{export.recipe.name}, {export.bits_per_weight:.2f} bits each, {human_size(export.num_bytes)}; lowering takes "
        f"about {human_size(export.memory_bytes)} of memory"
    )


def _table(export: ExecutorchExport) -> str:
    rows = [
        f"{getattr(number_format, 'name', number_format):16} {list(export.graph.weights[name].shape)!s:18} {name}"
        for name, number_format in export.formats.items()
    ]
    return "\n".join([*rows, "", f"{human_size(export.num_bytes):>10}  {export.out / 'model.pte'}"])


executorch.__doc__ = f"{executorch.__doc__}\n\n{EPILOG}"
