"""``qwen3-export check``: does a file compute what its checkpoint computes?  Exit code 3 says that it does not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen3_export.cli.console import CONSOLE, show
from qwen3_export.cli.options import (
    MaxMeanKldOption,
    MaxP99KldOption,
    MinTop1Option,
    ModelOption,
    OfflineOption,
    RevisionOption,
    ThreadsOption,
)

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.parity.report import Gates, Report

EPILOG = """Examples:

  qwen3-export check demo-q4_k_m.gguf --model demo

  qwen3-export check demo-onnx-int4 --model demo

  qwen3-export check app/model.gguf --model Qwen3-1.7B --full --max-mean-kld 0.02 --json report.json

  qwen3-export check app/model.gguf --model Qwen3-1.7B --junit parity.xml --html parity.html
"""

OUT_OF_BOUNDS = 3


def check(
    artifact: Annotated[
        Path,
        typer.Argument(help="A GGUF file (of a split one, any part), or an exported folder.", show_default=False),
    ],
    model: ModelOption,
    full: Annotated[bool, typer.Option("--full", help="Every layer, every prompt, every stored value.")] = False,
    json: Annotated[Path | None, typer.Option("--json", help="Write the report here.", show_default=False)] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Write a readable report.", show_default=False)] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML, for CI to show.", show_default=False)
    ] = None,
    max_mean_kld: MaxMeanKldOption = None,
    max_p99_kld: MaxP99KldOption = None,
    min_top1: MinTop1Option = None,
    threads: ThreadsOption = None,
    revision: RevisionOption = None,
    offline: OfflineOption = False,
) -> None:
    """Compare an artifact with its checkpoint, and exit with 3 if it is out of bounds."""
    from qwen3_export.checkpoint.model import load
    from qwen3_export.parity.report import Gates
    from qwen3_export.targets.registry import target_of

    target_of(artifact)
    check_outputs(json=json, html=html, junit=junit, inputs=[artifact])
    gates = Gates(max_mean_kld=max_mean_kld, max_p99_kld=max_p99_kld, min_top1=min_top1)
    opened = load(model, revision=revision, offline=offline)
    report = run_check(artifact, opened, full=full, gates=gates, threads=threads, revision=revision)
    _save(report, json=json, html=html, junit=junit)
    show_and_exit(report)


def check_outputs(
    *, json: Path | None = None, html: Path | None = None, junit: Path | None = None, inputs: Sequence[Path] = ()
) -> None:
    """Refuse, before any work is done, reports that have no place or would take that of another file."""
    from qwen3_export.files.atomic import check_output
    from qwen3_export.files.recognise import is_html_report, is_junit, is_report

    for path, is_ours in ((json, is_report), (html, is_html_report), (junit, is_junit)):
        if path is not None:
            check_output(path, overwrite=True, is_ours=is_ours, inputs=inputs)


def run_check(
    artifact: Path,
    model: Model,
    *,
    full: bool = False,
    gates: Gates | None = None,
    threads: int | None = None,
    revision: str | None = None,
) -> Report:
    """Check one artifact, telling what is being done on standard error; the report says how to repeat it."""
    from qwen3_export import api

    report = api.check(artifact, model, full=full, gates=gates, threads=threads, progress=CONSOLE)
    return replace(report, command=_command(artifact, model, full=full, gates=gates, revision=revision))


def show_and_exit(report: Report) -> None:
    """Print the report's summary; exit with 3 if the verdict is that the artifact is out of bounds."""
    from qwen3_export.parity.summary import to_text

    show(to_text(report))
    if report.verdict == "fail":
        raise typer.Exit(OUT_OF_BOUNDS)


def _command(artifact: Path, model: Model, *, full: bool, gates: Gates | None, revision: str | None) -> str:
    """What checks the same again: all options that its result depends on."""
    is_named = "/" in model.source or model.source == "demo"
    words = ["qwen3-export", "check", str(artifact), "--model", model.source if is_named else str(model.folder)]
    words += ["--full"] if full else []
    words += [] if revision is None else ["--revision", revision]
    for option in () if gates is None else ("max_mean_kld", "max_p99_kld", "min_top1"):
        bound = getattr(gates, option)
        words += [] if bound is None else [f"--{option.replace('_', '-')}", str(bound)]
    return shlex.join(words)


def _save(report: Report, *, json: Path | None, html: Path | None, junit: Path | None) -> None:
    from qwen3_export.parity.html import save_html
    from qwen3_export.parity.junit import save_junit
    from qwen3_export.parity.report import save_report

    if json is not None:
        save_report(report, json)
    if html is not None:
        save_html(report, html)
    if junit is not None:
        save_junit([report], junit)


check.__doc__ = f"{check.__doc__}\n\n{EPILOG}"
