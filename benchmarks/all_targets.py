"""Export one model to every target, check each artifact in full, and write the parity table into a page.

    python benchmarks/all_targets.py --work FOLDER [--model demo] [--calibration F] [--questions 400] [--page README.md]

FOLDER holds the exports, the reports and the work files of calibrated runs. Artifacts and reports that are already
there are not made again (``--anew`` makes all). ``--questions`` also asks the demo the questions that it was taught
(benchmarks/taught_questions.py), in both modes, and adds the share of right answers with a paired test against fp32. In
the page, the table stands between two comments that mark it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3_export.parity.markdown import COLUMNS, table_rows
from qwen3_export.parity.reading import read_report

MODES = ("thinking", "plain")
BEGIN, END = "<!-- parity table: benchmarks/all_targets.py -->", "<!-- end of the parity table -->"


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artifact. ``options`` are for its export command; ``is_asked`` if its runtime is fast enough to ask."""

    target: str
    quant: str
    method: str = "rtn"
    options: tuple[str, ...] = ()
    is_asked: bool = True

    @property
    def name(self) -> str:
        return f"{self.target}-{self.quant}-{self.method}" + (".gguf" if self.target == "gguf" else "")


JOBS = (
    Job(target="gguf", quant="q8_0"),
    Job(target="gguf", quant="q4_k_m"),
    Job(target="gguf", quant="q4_k_m", method="gptq"),
    Job(target="gguf", quant="q2_k", method="gptq"),
    Job(target="onnx", quant="int8"),
    Job(target="onnx", quant="int4"),
    Job(target="onnx", quant="int4_int8", method="gptq"),
    Job(target="executorch", quant="8da8w", options=("--max-seq-len", "1024")),
    Job(target="executorch", quant="8da4w", options=("--max-seq-len", "1024")),
    Job(target="executorch", quant="8da4w", method="gptq", options=("--max-seq-len", "1024")),
    Job(target="coreml", quant="fp16", is_asked=False),
    Job(target="coreml", quant="int4", method="gptq"),
    Job(target="coreml", quant="palette4", method="gptq", is_asked=False),
)


def main() -> None:
    arguments = _arguments()
    arguments.work.mkdir(parents=True, exist_ok=True)
    for job in JOBS:
        _export(job, arguments)
        _check(job, arguments)
    answers = _ask(arguments) if arguments.questions else {}
    table = _table(arguments.work, answers)
    print(table, end="")
    if arguments.page is not None:
        page = arguments.page.read_text(encoding="utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        arguments.page.write_text(f"{before}{BEGIN}\n{table}{END}{after}", encoding="utf-8")


def _export(job: Job, arguments: argparse.Namespace) -> None:
    out = arguments.work / job.name
    if out.exists() and not arguments.anew:
        return
    command = [job.target, "--model", arguments.model, "--quant", job.quant, "--method", job.method, *job.options]
    if job.method != "rtn" and arguments.calibration is not None:
        command += ["--calibration", str(arguments.calibration), "--samples", "64"]
    _run([*command, "--no-check", "--force", "--out", str(out)])


def _check(job: Job, arguments: argparse.Namespace) -> None:
    report = _report_path(arguments.work, job)
    if report.exists() and not arguments.anew:
        return
    artifact = arguments.work / job.name
    _run(["check", str(artifact), "--model", arguments.model, "--full", "--json", str(report)], codes=(0, 3))


def _report_path(work: Path, job: Job) -> Path:
    return work / f"{Path(job.name).stem}.json"


def _run(arguments: Sequence[str], *, codes: Sequence[int] = (0,)) -> None:
    print(f"qwen3-export {' '.join(arguments)}", file=sys.stderr, flush=True)
    done = subprocess.run([sys.executable, "-m", "qwen3_export.cli.main", *arguments], check=False, stdout=sys.stderr)
    if done.returncode not in codes:
        raise SystemExit(done.returncode)


def _ask(arguments: argparse.Namespace) -> dict[str, Any]:
    """The results of the questions' benchmark, by artifact."""
    path = arguments.work / "answers.json"
    if not path.exists() or arguments.anew:
        script = Path(__file__).with_name("taught_questions.py")
        command = [sys.executable, str(script), "--count", str(arguments.questions), "--json", str(path)]
        subprocess.run(
            [*command, *(str(arguments.work / job.name) for job in JOBS if job.is_asked)], check=True, stdout=sys.stderr
        )
    document = json.loads(path.read_text(encoding="utf-8"))
    return {row["name"]: row for row in document["rows"]}


def _table(work: Path, answers: dict[str, Any]) -> str:
    heads = [*COLUMNS, *(("thinking", "p", "not thinking", "p") if answers else ())]
    rows = [heads, ["---"] * len(heads)]
    for job in JOBS:
        (row,) = table_rows([read_report(_report_path(work, job))])
        rows.append([*row, *_answered(answers, job)])
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    if answers:
        whole = next(iter(answers.values()))  # the reference comes first
        shares = " and ".join(f"{whole['accuracy'][mode]:.1%}" for mode in MODES)
        text += (
            f"\nRight answers to {whole['asked']} different questions of the kinds that the model was taught, thinking "
            f"and not: fp32 itself gives {shares}; p is McNemar's exact test against it.\n"
        )
    return text


def _answered(answers: dict[str, Any], job: Job) -> list[str]:
    if not answers:
        return []
    if not job.is_asked:
        return ["–"] * (2 * len(MODES))
    row = answers[job.name]
    return [text for mode in MODES for text in (f"{row['accuracy'][mode]:.1%}", f"{row['p_value'][mode]:.2g}")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--questions", type=int, default=0)
    parser.add_argument("--page", type=Path)
    parser.add_argument("--anew", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
