"""``qwen3-export gguf``: a checkpoint to a proven GGUF file."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import human_count, human_size, progress, say
from qwen3_export.cli.exporting import Method, MethodOption, Solving, finish_with_check, open_model
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
    parse_size,
)
from qwen3_export.errors import ExportError

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray

    from qwen3_export.checkpoint.model import Model
    from qwen3_export.quantizers.transforms import Fold
    from qwen3_export.targets.gguf.export import GgufExport

EPILOG = """Examples:

  qwen3-export gguf --model demo --quant q4_k_m

  qwen3-export gguf --model demo --quant q4_k_m --method gptq

  qwen3-export gguf --model Qwen3-1.7B --quant q4_k_m --imatrix imatrix.gguf

  qwen3-export gguf --model Qwen3-1.7B --quant q4_k_m --balance-keys    (for llama.cpp's -ctk q8_0 and q4_0)

  qwen3-export gguf --model ./my-finetune --quant q5_k_m --tensor-type attn_v=q8_0 --out app/model.gguf
"""

ImatrixOption = Annotated[
    Path | None,
    typer.Option("--imatrix", help="An importance matrix of llama.cpp (.gguf or .dat).", show_default=False),
]


def gguf(
    model: ModelOption,
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="The recipe; 'qwen3-export quants' lists them.")
    ] = "q4_k_m",
    method: MethodOption = Method.RTN,
    calibration: CalibrationOption = None,
    imatrix: ImatrixOption = None,
    tensor_type: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            help="ROLE=FORMAT, such as attn_v=q6_k or blk.3.ffn_down=q5_k; repeatable.",
            show_default=False,
        ),
    ] = None,
    output_type: Annotated[
        str | None, typer.Option("--output-type", help="Format of the output head.", show_default=False)
    ] = None,
    embedding_type: Annotated[
        str | None, typer.Option("--embedding-type", help="Format of the token embedding.", show_default=False)
    ] = None,
    split_max_size: Annotated[
        str | None,
        typer.Option("--split-max-size", help="Split into files of at most this, such as 2G.", show_default=False),
    ] = None,
    balance_keys: Annotated[
        bool,
        typer.Option(
            "--balance-keys",
            help="Move scales between q_norm and k_norm, exactly, so that a quantized cache of keys loses less.",
        ),
    ] = False,
    modelfile: Annotated[
        bool, typer.Option("--modelfile", help="Write a Modelfile for Ollama beside the file.")
    ] = False,
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
    """Write a GGUF file for llama.cpp, Ollama and LM Studio, and check it against the checkpoint."""
    from qwen3_export.targets.gguf.export import default_path, prepare, with_solution
    from qwen3_export.targets.gguf.imatrix import read_imatrix
    from qwen3_export.targets.gguf.recipes import find_recipe, parse_overrides

    if method is not Method.RTN and imatrix is not None:
        raise ExportError(f"--imatrix is for --method rtn; {method.value} measures more from its --calibration text")
    solving = Solving(
        method=method,
        calibration=calibration,
        sequence_length=sequence_length,
        samples=samples,
        seed=seed,
        work_dir=work_dir,
        resume=resume,
        threads=threads,
        measures_text=balance_keys,
    )
    recipe = find_recipe(quant)
    overrides = parse_overrides(tensor_type or [], output_type=output_type, embedding_type=embedding_type)
    opened = open_model(model, revision=revision, offline=offline)
    scales = _balanced(solving, opened) if balance_keys else None
    export = prepare(
        opened,
        recipe,
        out=out or default_path(opened, recipe),
        overrides=overrides,
        imatrix=None if imatrix is None else read_imatrix(imatrix),
        is_calibrated=solving.is_calibrated,
        scales=scales,
        split_max_size=None if split_max_size is None else parse_size(split_max_size),
    )
    say(_forecast(export))
    text = solving.read_text(opened)
    if dry_run:
        solving.forecast(export, text)
        print(_tensor_table(export))
        return
    inputs = [*opened.files(), *([] if imatrix is None else [imatrix])]
    _check_outputs(export, force=force, modelfile=modelfile, inputs=inputs, is_checked=not no_check)
    started = time.perf_counter()
    with solving.solved(export, text, with_solution) as ready:
        _write(ready, force=force, inputs=inputs, threads=threads, modelfile=modelfile)
    _print_result(export, time.perf_counter() - started)
    if not no_check:
        finish_with_check(export.files[0].path, _report_path(export), opened, threads=threads)


def _balanced(solving: Solving, model: Model) -> dict[Fold, NDArray[float32]]:
    """Scales between q_norm and k_norm, measured on the calibration text."""
    from qwen3_export.calibration.key_balance import balance_keys
    from qwen3_export.parallel import use_threads

    use_threads(solving.threads)
    text = solving.read_any_text(model)
    with progress("measuring keys", model.graph.config.num_hidden_layers) as advance:
        return balance_keys(model.graph, text.windows, progress=lambda _done, _total: advance(1))


def _check_outputs(
    export: GgufExport, *, force: bool, modelfile: bool, inputs: Sequence[Path], is_checked: bool
) -> None:
    """Refuse what cannot or should not be written, before anything is computed."""
    from qwen3_export.files.atomic import check_output
    from qwen3_export.files.recognise import is_gguf_model, is_modelfile, is_report

    for file in export.files:
        check_output(file.path, overwrite=force, is_ours=is_gguf_model, inputs=inputs)
    if modelfile:
        check_output(_modelfile_path(export), overwrite=force, is_ours=is_modelfile, inputs=inputs)
    if is_checked:
        check_output(_report_path(export), overwrite=True, is_ours=is_report, inputs=inputs)


def _report_path(export: GgufExport) -> Path:
    return export.files[0].path.with_suffix(".report.json")


def _modelfile_path(export: GgufExport) -> Path:
    return export.files[0].path.with_name("Modelfile")


def _write(export: GgufExport, *, force: bool, inputs: Sequence[Path], threads: int | None, modelfile: bool) -> None:
    from qwen3_export.files.atomic import write_text
    from qwen3_export.files.recognise import is_modelfile
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.modelfile import build_modelfile

    with progress("writing", export.model.graph.num_parameters) as advance:
        emit(export.files, overwrite=force, inputs=inputs, threads=threads, progress=advance)
    if modelfile:
        text = build_modelfile(export.model, export.files[0].path)
        write_text(_modelfile_path(export), text, overwrite=force, is_ours=is_modelfile)


def _forecast(export: GgufExport) -> str:
    parts = "" if len(export.files) == 1 else f" in {len(export.files)} files"
    return (
        f"{export.model.name}: {human_count(export.model.graph.num_parameters)} parameters to {export.recipe.name}, "
        f"{export.bits_per_weight:.2f} bits a weight, {human_size(export.num_bytes)}{parts}"
    )


def _tensor_table(export: GgufExport) -> str:
    rows = [f"{export.formats[tensor.name]:8} {list(tensor.shape)!s:22} {tensor.name}" for tensor in export.tensors]
    files = [f"{human_size(file.num_bytes):>10}  {file.path}" for file in export.files]
    return "\n".join([*rows, "", *files])


def _print_result(export: GgufExport, seconds: float) -> None:
    for file in export.files:
        print(f"wrote {file.path} ({human_size(file.num_bytes)})")
    print(f"{export.bits_per_weight:.2f} bits a weight, {seconds:.1f} s")
    print(f'run it: llama-cli -m {shlex.quote(str(export.files[0].path))} -p "Hello"')


gguf.__doc__ = f"{gguf.__doc__}\n\n{EPILOG}"
