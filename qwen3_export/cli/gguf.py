"""``qwen3-export gguf``: a checkpoint to a proven GGUF file."""

from __future__ import annotations

import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import human_count, human_duration, human_size, progress, say
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
    from qwen3_export.calibration.forecast import Forecast
    from qwen3_export.calibration.tokens import Calibration
    from qwen3_export.model import Model
    from qwen3_export.targets.gguf.export import GgufExport

EPILOG = """Examples:

  qwen3-export gguf --model demo --quant q4_k_m

  qwen3-export gguf --model demo --quant q4_k_m --method gptq

  qwen3-export gguf --model Qwen3-1.7B --quant q4_k_m --imatrix imatrix.gguf

  qwen3-export gguf --model ./my-finetune --quant q5_k_m --tensor-type attn_v=q8_0 --out app/model.gguf
"""

ImatrixOption = Annotated[
    Path | None,
    typer.Option("--imatrix", help="An importance matrix of llama.cpp (.gguf or .dat).", show_default=False),
]


class Method(str, Enum):
    """How the stored values are chosen."""

    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"


def gguf(
    model: ModelOption,
    quant: Annotated[
        str, typer.Option("--quant", "-q", help="The recipe; 'qwen3-export quants' lists them.")
    ] = "q4_k_m",
    method: Annotated[
        Method,
        typer.Option(
            "--method",
            help="rtn rounds to nearest; gptq and awq are calibrated: better and slower, gptq by far the best.",
        ),
    ] = Method.RTN,
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
    from qwen3_export.model import load
    from qwen3_export.targets.gguf.export import default_path, prepare
    from qwen3_export.targets.gguf.imatrix import read_imatrix
    from qwen3_export.targets.gguf.recipes import find_recipe, parse_overrides

    _refuse_contradictions(method, imatrix=imatrix, calibration=calibration)
    recipe = find_recipe(quant)
    overrides = parse_overrides(tensor_type or [], output_type=output_type, embedding_type=embedding_type)
    opened = load(model, revision=revision, offline=offline)
    for note in opened.graph.notes:
        say(f"note: {note}")
    export = prepare(
        opened,
        recipe,
        out=out or default_path(opened, recipe),
        overrides=overrides,
        imatrix=None if imatrix is None else read_imatrix(imatrix),
        is_calibrated=method is not Method.RTN,
        split_max_size=None if split_max_size is None else parse_size(split_max_size),
    )
    say(_forecast(export))
    text = None
    if method is not Method.RTN:
        text = _read_calibration(opened, calibration, sequence_length=sequence_length, samples=samples, seed=seed)
    if dry_run:
        if text is not None:
            _forecast_solving(method, export, text, threads=threads)
        print(_tensor_table(export))
        return
    _check_outputs(export, force=force, modelfile=modelfile)
    started = time.perf_counter()
    with ExitStack() as stack:
        if text is not None:
            folder = stack.enter_context(_work_folder(work_dir, export))
            expected = _forecast_solving(method, export, text, threads=threads)
            if not folder.exists():
                from qwen3_export.calibration.forecast import check_disk

                check_disk(expected.disk_bytes + export.num_bytes, folder)
            export = _solve(method, export, text, folder, resume=resume, threads=threads)
        _write(export, threads=threads, modelfile=modelfile)
    _print_result(export, time.perf_counter() - started)
    if not no_check:
        _check(export, threads=threads)


def _refuse_contradictions(method: Method, *, imatrix: Path | None, calibration: Path | None) -> None:
    if method is Method.RTN and calibration is not None:
        raise ExportError("--calibration is for --method gptq and awq; rtn uses no text, but takes an --imatrix")
    if method is not Method.RTN and imatrix is not None:
        raise ExportError(f"--imatrix is for --method rtn; {method.value} measures more from its --calibration text")


def _check_outputs(export: GgufExport, *, force: bool, modelfile: bool) -> None:
    """Refuse what cannot or should not be written, before anything is computed."""
    from qwen3_export.atomic import check_output

    for file in export.files:
        check_output(file.path, force=force, inputs=export.model.files())
    if modelfile:
        check_output(_modelfile_path(export), force=force)


def _modelfile_path(export: GgufExport) -> Path:
    return export.files[0].path.with_name("Modelfile")


def _read_calibration(model: Model, path: Path | None, *, sequence_length: int, samples: int, seed: int) -> Calibration:
    from qwen3_export.calibration.tokens import read_calibration

    text = read_calibration(path, model.tokenizer, sequence_length=sequence_length, num_samples=samples, seed=seed)
    say(f"calibrating on {text.num_tokens:,} tokens of {text.source}, sha256 {text.digest[:16]}")
    return text


@contextmanager
def _work_folder(chosen: Path | None, export: GgufExport) -> Iterator[Path]:
    """Where a solver keeps its results: removed once they are in the file, kept when interrupted or asked for."""
    folder = chosen or export.files[0].path.with_name(f"{export.files[0].path.name}.work")
    say(f"if it is interrupted, the same command goes on where it ended, from {folder}")
    yield folder
    if chosen is None:
        shutil.rmtree(folder)


def _forecast_solving(method: Method, export: GgufExport, text: Calibration, *, threads: int | None) -> Forecast:
    """Say what solving will take."""
    from qwen3_export.methods import forecast_solving
    from qwen3_export.parallel import use_threads

    use_threads(threads)
    expected = forecast_solving(method.value, export.model.graph, export.weight_formats, text, threads=threads)
    say(
        f"forecast: {human_duration(expected.seconds)}, {human_size(expected.memory_bytes)} of memory, "
        f"{human_size(expected.disk_bytes)} of disk for unfinished work"
    )
    return expected


def _solve(
    method: Method, export: GgufExport, text: Calibration, folder: Path, *, resume: bool, threads: int | None
) -> GgufExport:
    from qwen3_export.methods import solve
    from qwen3_export.parallel import use_threads
    from qwen3_export.targets.gguf.export import with_solution

    use_threads(threads)
    with progress("solving", 100) as advance:
        told = 0

        def tell(done: int, total: int) -> None:
            nonlocal told
            advance(100 * done // total - told)
            told = 100 * done // total

        solution = solve(
            method.value,
            export.model.graph,
            export.weight_formats,
            text,
            work_dir=folder,
            resume=resume,
            threads=threads,
            progress=tell,
        )
    for note in solution.notes:
        say(f"note: {note}")
    return with_solution(export, solution)


def _write(export: GgufExport, *, threads: int | None, modelfile: bool) -> None:
    from qwen3_export.atomic import write_text
    from qwen3_export.targets.gguf.emit import emit
    from qwen3_export.targets.gguf.modelfile import build_modelfile

    with progress("writing", export.model.graph.num_parameters) as advance:
        emit(export.files, threads=threads, progress=advance)
    if modelfile:
        write_text(_modelfile_path(export), build_modelfile(export.model, export.files[0].path))


def _check(export: GgufExport, *, threads: int | None) -> None:
    """Check what was written, and save the report beside it."""
    from qwen3_export.cli.check import run_check, show_and_exit
    from qwen3_export.parity.report import save_report

    path = export.files[0].path
    report = run_check(path, export.model, threads=threads)
    save_report(report, path.with_suffix(".report.json"))
    show_and_exit(report)


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
