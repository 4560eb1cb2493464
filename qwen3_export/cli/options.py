"""Options that several commands share, each declared once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

MODEL_HELP = "A checkpoint folder, a hub id (Qwen/Qwen3-1.7B), a short name (Qwen3-1.7B), or demo."

ModelOption = Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=MODEL_HELP, show_default=False)]


class MethodName(str, Enum):
    """How the stored values are chosen."""

    RTN = "rtn"
    GPTQ = "gptq"
    AWQ = "awq"


MethodOption = Annotated[
    MethodName,
    typer.Option(
        "--method",
        help="How stored values are chosen: rtn rounds to nearest; gptq and awq are calibrated, which is slower and "
        "better, gptq by far.",
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="NAME", help="Branch, tag or commit of the hub id.", show_default=False),
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use the local Hugging Face cache only.")]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", metavar="PATH", help="Where to write; the current folder by default.", show_default=False
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace an earlier export.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be written, and write nothing.")]
NoCheckOption = Annotated[bool, typer.Option("--no-check", help="Skip the parity check that ends an export.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", help="Worker threads; all cores by default.", min=1, show_default=False),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="Text to calibrate on: .txt, or .jsonl with text or messages; by default a sample that ships with this.",
        show_default=False,
    ),
]
SequenceLengthOption = Annotated[
    int, typer.Option("--sequence-length", metavar="N", help="Tokens in a window of calibration text.", min=2)
]
SamplesOption = Annotated[
    int, typer.Option("--samples", metavar="N", help="Windows of calibration text, at most.", min=1)
]
SeedOption = Annotated[int, typer.Option("--seed", metavar="N", help="Chooses the windows, where the text has more.")]
WorkDirOption = Annotated[
    Path | None,
    typer.Option(
        "--work-dir",
        metavar="FOLDER",
        help="Where unfinished work is kept; beside --out by default.",
        show_default=False,
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on from what an interrupted run has left.")
]
MaxMeanKldOption = Annotated[
    float | None, typer.Option("--max-mean-kld", help="Fail if end-to-end mean KLD exceeds this.", show_default=False)
]
MaxP99KldOption = Annotated[
    float | None, typer.Option("--max-p99-kld", help="Fail if end-to-end p99 KLD exceeds this.", show_default=False)
]
MinTop1Option = Annotated[
    float | None,
    typer.Option(
        "--min-top1", help="Fail if fewer top tokens agree end to end (0 to 1).", min=0, max=1, show_default=False
    ),
]
