"""The export commands, one for each target: made from the table of targets and their options."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer
from typer.core import TyperCommand

from qwen3_export.cli import options as shared
from qwen3_export.cli.check import run_check, show_and_exit
from qwen3_export.cli.console import CONSOLE, say
from qwen3_export.cli.interrupted import Interrupted
from qwen3_export.cli.wording import option_name
from qwen3_export.targets.options import OptionText, make_options, option_texts
from qwen3_export.targets.target import Target
from qwen3_export.units import human_count, human_size

if TYPE_CHECKING:
    from qwen3_export.calibration.solving import Method
    from qwen3_export.calibration.tokens import Calibration
    from qwen3_export.checkpoint.model import Model
    from qwen3_export.targets.target import Plan

__all__ = ["export_class", "export_command"]

Parameter = inspect.Parameter

# Before the target's own options, and after them.
FIRST: dict[str, tuple[Any, Any]] = {"model": (shared.ModelOption, Parameter.empty)}
SECOND: dict[str, tuple[Any, Any]] = {"method": (shared.MethodOption, shared.MethodName.RTN)}
LAST: dict[str, tuple[Any, Any]] = {
    "out": (shared.OutOption, None),
    "force": (shared.ForceOption, False),
    "dry_run": (shared.DryRunOption, False),
    "no_check": (shared.NoCheckOption, False),
    "calibration": (shared.CalibrationOption, None),
    "sequence_length": (shared.SequenceLengthOption, 512),
    "samples": (shared.SamplesOption, 128),
    "seed": (shared.SeedOption, 0),
    "work_dir": (shared.WorkDirOption, None),
    "resume": (shared.ResumeOption, True),
    "threads": (shared.ThreadsOption, None),
    "revision": (shared.RevisionOption, None),
    "offline": (shared.OfflineOption, False),
}


def export_command(target: Target) -> Callable[..., None]:
    """The command of a target, with a parameter for each of its options, for typer to read."""

    def command(**values: Any) -> None:
        plain = {name: _value(value) for name, value in values.items()}
        own = {name: plain.pop(name) for name, *_ in option_texts(target.options)}
        _export(target, own, **plain)

    examples = "\n\n".join(f"  qwen3-export {target.name} {example}" for example in target.examples)
    command.__name__ = target.name
    command.__doc__ = f"{target.summary}\n\nExamples:\n\n{examples}\n"
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in (FIRST | _quant(target) | SECOND | _own(target) | LAST).items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def export_class(target: Target) -> type[TyperCommand]:
    """The kind of command that takes the older spellings of a target's options, too."""
    renamed = {old: option_name(name) for name, _, _, text in option_texts(target.options) for old in text.hidden}

    class ExportCommand(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            return super().parse_args(ctx, [_renamed(word, renamed) for word in args])

    return ExportCommand


def _renamed(word: str, renamed: dict[str, str]) -> str:
    """``--group-size=64`` for ``--block-size=64``."""
    name, equals, value = word.partition("=")
    return renamed.get(name, name) + equals + value


def _quant(target: Target) -> dict[str, tuple[Any, Any]]:
    text = f"The recipe; 'qwen3-export quants {target.name}' lists them."
    return {
        "quant": (Annotated[str, typer.Option("--quant", "-q", metavar="RECIPE", help=text)], target.default_recipe)
    }


def _own(target: Target) -> dict[str, tuple[Any, Any]]:
    return {name: _as_typer(name, kind, default, text) for name, kind, default, text in option_texts(target.options)}


def _as_typer(name: str, declared: Any, default: Any, text: OptionText) -> tuple[Any, Any]:
    """An option's annotation and default, as typer wants them."""
    settings: dict[str, Any] = {"help": text.help, "metavar": text.metavar, "show_default": default not in (None, ())}
    kind = _without_none(declared)
    if kind is int and text.metavar is None:
        settings["metavar"] = "N"
    if kind is Path and text.metavar is None:
        settings["metavar"] = "FILE"
    if get_origin(kind) is Literal:
        kind = _choices(name, get_args(kind))
        default = kind(default)
    elif get_origin(kind) is tuple:
        kind, default = list[str], list(default)
    elif default is None:
        kind = kind | None
    return Annotated[kind, typer.Option(option_name(name), **settings)], default


def _choices(name: str, values: tuple[str, ...]) -> Any:
    """An enumeration, which is how typer knows choices."""
    return Enum(name, {value: value for value in values}, type=str)


def _without_none(kind: Any) -> Any:
    """``int`` for ``int | None``."""
    if get_origin(kind) not in (Union, UnionType):
        return kind
    (left,) = (part for part in get_args(kind) if part is not type(None))
    return left


def _export(
    target: Target,
    own: dict[str, Any],
    *,
    model: str,
    quant: str,
    method: Method,
    out: Path | None,
    force: bool,
    dry_run: bool,
    no_check: bool,
    calibration: Path | None,
    sequence_length: int,
    samples: int,
    seed: int,
    work_dir: Path | None,
    resume: bool,
    threads: int | None,
    revision: str | None,
    offline: bool,
) -> None:
    from qwen3_export.files.atomic import check_output
    from qwen3_export.files.recognise import is_report
    from qwen3_export.targets.exporting import check_text, check_tune, export, forecast, needs_text

    chosen = make_options(target.options, target.title, own)
    check_text(calibration, method, chosen)
    check_tune(method, chosen)
    opened = _open(model, revision=revision, offline=offline)
    plan = target.doors.plan(opened, quant, out=out, options=chosen, method=method)
    say(_summary(plan))
    for remark in plan.remarks:
        say(f"note: {remark}")
    text = None
    if needs_text(method, chosen):
        text = _read_text(calibration, opened, sequence_length=sequence_length, samples=samples, seed=seed)
    if dry_run:
        expected = None if text is None else forecast(plan, method, text, threads=threads)
        if expected is not None and expected.seconds:
            say(f"forecast: {expected}")
        print("\n".join(plan.rows()))
        return
    target.doors.check_place(plan, overwrite=force)
    if not no_check and plan.report.exists():  # before hours of work
        check_output(plan.report, overwrite=True, is_ours=is_report)
    started = time.perf_counter()
    settings: dict[str, Any] = {"work_dir": work_dir, "resume": resume, "threads": threads, "progress": CONSOLE}
    try:
        artifact = export(target.doors, plan, method=method, text=text, overwrite=force, **settings)
    except Interrupted as interrupted:
        raise interrupted.keeping(work_dir or plan.out.with_name(f"{plan.out.name}.work")) from None
    _print_result(plan, seconds=time.perf_counter() - started)
    if not no_check:
        target.doors.before_check(artifact, opened)
        _check(artifact, plan.report, opened, threads=threads)


def _value(value: Any) -> Any:
    """Typer gives lists and members of enumerations; options are plain values."""
    if isinstance(value, Enum):
        return value.value
    return tuple(value) if isinstance(value, list) else value


def _open(model: str, *, revision: str | None, offline: bool) -> Model:
    """The checkpoint, its notes told."""
    from qwen3_export.checkpoint.model import load

    opened = load(model, revision=revision, offline=offline)
    for note in opened.graph.notes:
        say(f"note: {note}")
    return opened


def _read_text(path: Path | None, model: Model, *, sequence_length: int, samples: int, seed: int) -> Calibration:
    """The calibration text as tokens, and its digest told."""
    from qwen3_export.calibration.tokens import read_calibration

    text = read_calibration(path, model.tokenizer, sequence_length=sequence_length, num_samples=samples, seed=seed)
    say(f"calibrating on {text.num_tokens:,} tokens of {text.source}, sha256 {text.digest[:16]}")
    return text


def _summary(plan: Plan) -> str:
    return (
        f"{plan.model.name}: {human_count(plan.model.graph.num_parameters)} parameters to {plan.recipe.name}, "
        f"{plan.bits_per_weight:.2f} bits a weight, {human_size(plan.num_bytes)}"
    )


def _print_result(plan: Plan, *, seconds: float) -> None:
    written = plan.written()
    for part in written.parts:
        print(f"wrote {part}")
    print(f"{written.bits_per_weight:.2f} bits a weight, {seconds:.1f} s")
    print(f"run it: {written.run_it}")


def _check(artifact: Path, report_path: Path, model: Model, *, threads: int | None) -> None:
    """Check what was written, save the report with it, and exit with 3 if it is out of bounds."""
    report = run_check(artifact, model, threads=threads)
    report.save(report_path, overwrite=True)
    show_and_exit(report)
