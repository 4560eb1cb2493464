"""Options that several commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen3_export.errors import ExportError

MODEL_HELP = "A checkpoint folder, a hub id (Qwen/Qwen3-1.7B), a short name (Qwen3-1.7B), or demo."

ModelOption = Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP, show_default=False)]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", help="Branch, tag or commit of the hub id.", show_default=False)
]
OfflineOption = Annotated[bool, typer.Option("--offline", help="Use the local Hugging Face cache only.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="Where to write; the current folder by default.", show_default=False)
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite what is there.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be written, and write nothing.")]
NoCheckOption = Annotated[bool, typer.Option("--no-check", help="Skip the parity check that ends an export.")]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", help="Worker threads; all cores by default.", min=1, show_default=False)
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        help="Text to calibrate on: .txt, or .jsonl with text or messages; by default a sample that ships with this.",
        show_default=False,
    ),
]
SequenceLengthOption = Annotated[int, typer.Option("--sequence-length", help="Tokens of a window.", min=2)]
SamplesOption = Annotated[int, typer.Option("--samples", help="Windows at most.", min=1)]
SeedOption = Annotated[int, typer.Option("--seed", help="Which windows, where there are more.")]
WorkDirOption = Annotated[
    Path | None,
    typer.Option("--work-dir", help="Where unfinished work is kept; beside --out by default.", show_default=False),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume/--no-resume", help="Go on with what an interrupted run has left.")
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

SIZE_UNITS = {"": 1, "B": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_size(text: str) -> int:
    """Bytes of ``2G``, ``500M`` or a plain number; units are powers of 1000.  Raises ExportError."""
    digits = text.strip().upper().rstrip("KMGB")
    unit = text.strip().upper()[len(digits) :]
    try:
        size = int(float(digits) * SIZE_UNITS[unit])
    except (KeyError, ValueError) as error:
        raise ExportError(f"--split-max-size {text}: not a size; write 2G or 500M") from error
    if size <= 0:
        raise ExportError(f"--split-max-size {text}: must be positive")
    return size
