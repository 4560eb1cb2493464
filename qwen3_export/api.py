"""The Python API: what the command line does, for any target, as functions of a ``Model``.

``qwen3_export`` re-exports these names.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from qwen3_export.calibration.solving import Method
from qwen3_export.calibration.tokens import Calibration, read_calibration
from qwen3_export.checkpoint.model import Model, load
from qwen3_export.generation.replying import reply
from qwen3_export.graph import Graph
from qwen3_export.parallel import use_threads
from qwen3_export.parity.check import check_subject
from qwen3_export.parity.report import Gates, Report
from qwen3_export.progress import SILENT, Progress
from qwen3_export.targets import exporting
from qwen3_export.targets.options import make_options
from qwen3_export.targets.registry import TARGETS, find_target, open_artifact, planned_target, target_of
from qwen3_export.targets.target import Plan, Target

__all__ = [
    "TARGETS",
    "Calibration",
    "Gates",
    "Graph",
    "Model",
    "Plan",
    "Report",
    "Target",
    "calibration_text",
    "check",
    "export",
    "generate",
    "load",
    "plan",
    "read",
]


def plan(
    model: Model,
    target: str,
    recipe: str | None = None,
    *,
    out: Path | str | None = None,
    method: Method = "rtn",
    **options: Any,
) -> Plan:
    """Lay out an export: formats, sizes and files are settled, and nothing is written.

    ``target`` is a name of ``TARGETS``, ``recipe`` one of its recipes (the usual one by default), ``out`` the file or
    folder to write (named after model and recipe in the current folder by default), ``options`` the target's own:
    ``help(qx.TARGETS["onnx"].options)`` lists them. ``method`` is the one that will choose the values: a few of
    llama.cpp's mixes depend on it. The plan says ``num_bytes`` and ``bits_per_weight``.

    Raises ExportError for an unknown name, and for what the target cannot store or represent.
    """
    found = find_target(target)
    exporting.check_method(method)
    chosen = make_options(found.options, found.title, options)
    exporting.check_tune(method, chosen)
    where = None if out is None else Path(out)
    return found.doors.plan(model, recipe or found.default_recipe, out=where, options=chosen, method=method)


def calibration_text(
    path: Path | str | None,
    model: Model,
    *,
    sequence_length: int = 512,
    num_samples: int = 128,
    seed: int = 0,
) -> Calibration:
    """Text to calibrate on, as windows of the model's tokens.

    ``path`` is a .txt file, or a .jsonl file with ``text`` or ``messages``; None is the sample that ships with the
    package. At most ``num_samples`` windows of ``sequence_length`` tokens are taken; ``seed`` chooses which.
    """
    where = None if path is None else Path(path)
    return read_calibration(where, model.tokenizer, sequence_length=sequence_length, num_samples=num_samples, seed=seed)


def export(
    plan: Plan,
    *,
    method: Method = "rtn",
    text: Calibration | None = None,
    overwrite: bool = False,
    work_dir: Path | str | None = None,
    resume: bool = True,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Write what was planned, and return where it lies.

    ``method`` ``rtn`` rounds to nearest; ``gptq`` and ``awq`` choose better values in the same formats, on ``text``
    (the sample that ships with the package by default). An earlier export is replaced only with ``overwrite``, anything
    else never. A calibrated run that was interrupted goes on from ``work_dir`` (beside the output by default).
    """
    doors = planned_target(plan).doors
    folder = None if work_dir is None else Path(work_dir)
    return exporting.export(
        doors,
        plan,
        method=method,
        text=text,
        overwrite=overwrite,
        work_dir=folder,
        resume=resume,
        threads=threads,
        progress=progress,
    )


def check(
    artifact: Path | str,
    model: Model,
    *,
    full: bool = False,
    gates: Gates | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Compare an artifact of any target with the checkpoint that it was made of; docs/parity.md explains the report.

    ``full`` compares every layer, text and stored value. ``gates`` are your own bounds on what the artifact loses.
    """
    started, path = time.monotonic(), Path(artifact)
    target = target_of(path)
    use_threads(threads)
    progress.say("reading the artifact back")
    subject = target.doors.open_subject(path, model.graph, model.tokenizer, threads=threads)
    return check_subject(subject, model.tokenizer, full=full, gates=gates, say=progress.say, started=started)


def read(artifact: Path | str, model: Model) -> Graph:
    """The checkpoint's graph with the values that an artifact stores; nothing is decoded before it is asked for.

    Raises CheckpointError if the artifact's weights are not those of the model.
    """
    path = Path(artifact)
    return target_of(path).doors.read(path, model.graph)


def generate(
    artifact: Path | str,
    prompt: str,
    *,
    model: Model | None = None,
    system: str | None = None,
    think: bool | None = None,
    thinking_budget: int | None = None,
    max_new_tokens: int = 2048,
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    seed: int | None = None,
    threads: int | None = None,
) -> str:
    """A reply from an artifact through its own runtime: a thought, where there is one, stands in ``<think>``.

    ``model`` lends tokenizer and template to an artifact that lacks them. Sampling defaults are the makers' for each
    mode; ``temperature=0`` takes the most probable token.
    """
    path = Path(artifact)
    use_threads(threads)
    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}
    with open_artifact(path, model, threads=threads) as opened:
        return reply(
            opened,
            prompt,
            system=system,
            think=think,
            thinking_budget=thinking_budget,
            max_new_tokens=max_new_tokens,
            seed=seed,
            **sampling,
        )
