"""One check, the same for every target: from an artifact that was read back to the report on it.

The order is fixed: what shows without running, then values, then the runtime's exact form, then the artifact as it is.
What cannot be run, or breaks while it runs, becomes a sentence in the report.
"""

from __future__ import annotations

import time
from dataclasses import replace

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import ExportError
from qwen3_export.graph import Graph
from qwen3_export.parity.compare import compare_shipped
from qwen3_export.parity.findings import Exact, Findings
from qwen3_export.parity.judgement import moved_by
from qwen3_export.parity.opaque import OPAQUE_FORM
from qwen3_export.parity.prompts import tokenize_prompts
from qwen3_export.parity.report import Gates, Report
from qwen3_export.parity.subject import Job, RunForeign, Say, Subject

__all__ = ["check_subject"]


def check_subject(
    subject: Subject,
    tokenizer: Tokenizer,
    *,
    full: bool = False,
    gates: Gates | None = None,
    say: Say | None = None,
    started: float | None = None,
) -> Report:
    """Compare an artifact with the checkpoint that it was made of.

    ``full`` compares every layer, text and stored value; otherwise a sample. ``gates`` are the user's own bounds;
    ``say`` is told what is being done. ``started`` (``time.monotonic``) is when the artifact began to be read.
    """
    started = time.monotonic() if started is None else started
    say = say or (lambda _text: None)
    findings = _findings(subject, tokenizer, is_full=full, say=say)
    return findings.report(subject.artifact, gates=gates, seconds=time.monotonic() - started)


def _findings(subject: Subject, tokenizer: Tokenizer, *, is_full: bool, say: Say) -> Findings:
    stored = subject.stored
    if stored is not None:
        return _read_and_run(subject, stored, tokenizer, is_full=is_full, say=say)
    if subject.run_foreign is not None:
        return _run_foreign(subject, subject.run_foreign, tokenizer, is_full=is_full, say=say)
    exact, shipped = subject.unrun
    return Findings(exact=exact, shipped=shipped, problems=subject.problems, is_full=is_full)


def _read_and_run(subject: Subject, stored: Graph, tokenizer: Tokenizer, *, is_full: bool, say: Say) -> Findings:
    """Everything that can be shown of an artifact whose values are read."""
    problems, notes = list(subject.problems), list[str]()
    expected, wrong = moved_by(subject.original, subject.read_scales)
    problems += wrong
    values = subject.compare_values(stored, expected, is_full=is_full)
    job = Job(
        stored=stored,
        prompts=tokenize_prompts(tokenizer, quick=not is_full, max_tokens=subject.max_tokens),
        is_full=is_full,
        say=say,
    )
    exact, shipped = subject.unrun
    try:
        if subject.can_run:
            observed = subject.observe_runtime(job)
            problems += observed.problems
            notes += observed.notes
            exact = subject.exact(job)
            shipped = subject.shipped(job)
            problems += shipped.problems
        else:
            say("comparing the stored values with the original")
            numbers = compare_shipped(subject.original, stored, job.texts, run=None)
            shipped = replace(shipped, numbers=numbers)
    except ExportError as error:  # the runtime refuses the artifact
        problems.append(str(error))
    return Findings(
        exact=exact,
        shipped=shipped,
        problems=problems,
        notes=notes,
        values=values,
        prompts=job.prompts,
        is_full=is_full,
        decode=shipped.judged_decode,
    )


def _run_foreign(subject: Subject, run: RunForeign, tokenizer: Tokenizer, *, is_full: bool, say: Say) -> Findings:
    """What can be shown of another tool's artifact, whose values cannot be read."""
    problems = list(subject.problems)
    prompts = tokenize_prompts(tokenizer, quick=not is_full, max_tokens=subject.max_tokens)
    _, shipped = subject.unrun
    if subject.can_run:
        say("running another tool's artifact, whose weights cannot be read, against the original")
        try:
            shipped = run(prompts, is_full)
        except ExportError as error:  # the runtime refuses the artifact
            problems.append(str(error))
    return Findings(
        exact=Exact(description=OPAQUE_FORM),
        shipped=shipped,
        problems=problems,
        prompts=prompts,
        is_full=is_full,
        decode=shipped.judged_decode,
    )
