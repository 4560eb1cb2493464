"""The ``qwen3-export`` command: what it offers, and how anything that goes wrong is told.

Results go to standard output, everything else to standard error.  Exit codes: 0 done and in bounds, 1 refused
(bad input, missing extra), 2 usage, 3 exported or read, and out of bounds, 130 interrupted by Ctrl-C (128 and the
signal's number).
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from types import FrameType
from typing import Annotated

import typer

from qwen3_export import __version__
from qwen3_export.cli import calibrate, check, inspect, lint, quants, report, run
from qwen3_export.cli.console import say
from qwen3_export.cli.export import export_class, export_command
from qwen3_export.cli.guard import artifact, guard, opens_artifact
from qwen3_export.cli.interrupted import Interrupted
from qwen3_export.cli.wording import as_options
from qwen3_export.errors import ExportError
from qwen3_export.files.shown import on_one_line
from qwen3_export.targets.registry import TARGETS

__all__ = ["app", "main"]

EPILOG = "Start with: qwen3-export gguf --model demo --quant q4_k_m"
DEBUG_VARIABLE = "QWEN3_EXPORT_DEBUG"

app = typer.Typer(
    name="qwen3-export",
    help="Turn a Qwen3 checkpoint into the file an on-device app loads, and prove that it computes what it should.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for target in TARGETS.values():
    app.command(name=target.name, cls=export_class(target))(export_command(target))
app.command(name="calibrate")(calibrate.calibrate)
app.command(name="check")(check.check)
app.command(name="lint")(lint.lint)
app.command(name="report")(report.report)
app.command(name="inspect")(inspect.inspect)
app.command(name="run")(run.run)
app.command(name="quants")(quants.quants)


def main() -> None:
    """Run the command line and exit with its code."""
    guard(sys.argv[1:])
    # Threads of OpenMP shall sleep while they wait: spinning ones make a busy machine slow beyond measure.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        app()
    except ExportError as error:
        if os.environ.get(DEBUG_VARIABLE):
            say(traceback.format_exc())
        _fail(as_options(str(error)))
    except Interrupted as interrupted:
        _fail(interrupted.sentence, code=interrupted.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not opens_artifact(sys.argv[1:]):
            raise
        if os.environ.get(DEBUG_VARIABLE):
            say(traceback.format_exc())
        _fail(f"{artifact(sys.argv[1:])}: {_unforeseen(error)}")


def _version(on: bool) -> None:
    if on:
        print(f"qwen3-export {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[  # noqa: ARG001 (its callback does the work)
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # A second Ctrl-C while the first is being cleaned up must not cut the cleaning short.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise Interrupted(number)


def _unforeseen(error: Exception) -> str:
    """The last line of defence: an error that reading an artifact should not have raised."""
    reason = " ".join(str(error).split()) or "without a reason"
    return (
        f"reading it ended in {type(error).__name__} ({reason}); the file is damaged or of an unknown make, or this is "
        "a fault of qwen3-export (--debug shows where)"
    )


def _fail(sentence: str, *, code: int = 1) -> None:
    say(f"qwen3-export: {on_one_line(sentence)}")
    sys.exit(code)


if __name__ == "__main__":
    main()
