"""The check of a GGUF file: metadata, values, and the four numbers through llama.cpp.

``check_gguf`` first reads: metadata against the checkpoint's, tensors against its weights.  Then it runs: F32
twins for ``conversion``, the file itself for ``shipped`` and ``end_to_end``, both for ``decode``.  What llama.cpp
could not survive is not run: a wrong head size trips an assertion that ends the process.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Graph
from qwen3_export.parity.check import (
    Arithmetic,
    HalfPrefillCache,
    ShippedNumbers,
    compare_exact,
    compare_shipped,
    decided_parts,
    decode_difference,
)
from qwen3_export.parity.findings import Artifact, Exact, Findings, Shipped
from qwen3_export.parity.judgement import ROUNDING_METHODS, decode_text, longest_text, moved_by
from qwen3_export.parity.localise import localise
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.prompts import Prompt, tokenization_text, tokenize_prompts
from qwen3_export.parity.report import FirstDivergence, Gates, Report, Runtime
from qwen3_export.targets.gguf import llama
from qwen3_export.targets.gguf.activations import round_activations
from qwen3_export.targets.gguf.divergence import observe_sites
from qwen3_export.targets.gguf.metadata_check import metadata_differences
from qwen3_export.targets.gguf.read import GgufFile, open_gguf, read_graph, recorded_calibration, tensor_differences
from qwen3_export.targets.gguf.scales import read_scales
from qwen3_export.targets.gguf.twin import Window, plan_windows, window_graph, write_twin
from qwen3_export.targets.gguf.values import check_values

__all__ = ["check_gguf"]

# Measured: 1e-12 to 7e-12 on the demo model for every recipe.  A wrong eps (1e-5) gives 1e-5 and more.
CONVERSION_BOUND = 1e-9

# An F32 twin may take this much disk and memory (a single layer always may).
QUICK_TWIN_BYTES, FULL_TWIN_BYTES = 1 << 29, 4 << 30

PACKAGES = ("qwen3-export", "llama-cpp-python", "gguf", "torch", "numpy", "tokenizers")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One check: what is compared with what, and how thoroughly."""

    file: GgufFile
    original: Graph
    stored: Graph
    prompts: tuple[Prompt, ...]
    is_full: bool
    threads: int | None
    work_dir: Path | None
    say: Say

    @property
    def texts(self) -> list[list[int]]:
        return [list(prompt.tokens) for prompt in self.prompts]


def check_gguf(
    path: Path,
    graph: Graph,
    tokenizer: Tokenizer,
    *,
    full: bool = False,
    gates: Gates | None = None,
    threads: int | None = None,
    work_dir: Path | None = None,
    say: Say | None = None,
) -> Report:
    """Compare a GGUF file (for a split one: any part) with the checkpoint that it was made of.

    Values are compared with the checkpoint's, moved by the scales that the file records.  Twins are written below
    ``work_dir`` (the system's temporary folder).  ``say`` is told what happens.  Raises CheckpointError if the file
    is no GGUF file at all; whatever else is wrong with it is in the report.
    """
    started = time.monotonic()
    say = say or (lambda _text: None)
    say("reading the file back")
    file = open_gguf(path)
    found = metadata_differences(file.metadata, graph, tokenizer)
    missing = tensor_differences(file, graph)
    problems = [str(difference) for difference in found] + missing
    values, exact = None, Exact(description="not run")
    shipped = Shipped(numbers=ShippedNumbers(quantization=NOT_RUN))
    prompts: tuple[Prompt, ...] = ()
    if not missing:
        stored = read_graph(file, graph)
        expected, wrong = moved_by(graph, lambda: read_scales(file.metadata))
        problems += wrong
        values = check_values(stored, expected, is_full=full, is_solved=_method(file) not in ROUNDING_METHODS)
        prompts = tokenize_prompts(tokenizer, quick=not full, max_tokens=longest_text(graph))
        job = _Job(file=file, original=graph, stored=stored, prompts=prompts, is_full=full, threads=threads,
                   work_dir=work_dir, say=say)  # fmt: skip
        can_run = llama.is_installed() and all(difference.is_runnable for difference in found)
        try:
            problems += _tokenization_differences(job, tokenizer) if can_run else []
            exact = _run_exact(job) if can_run else exact
            shipped = _run_shipped(job, can_run=can_run)
        except CheckpointError as error:  # llama.cpp refuses the file
            problems.append(str(error))
    findings = Findings(exact=exact, shipped=shipped, problems=problems, values=values, prompts=prompts, is_full=full)
    return findings.report(_artifact(file, graph), gates=gates, seconds=time.monotonic() - started)


def _tokenization_differences(job: _Job, tokenizer: Tokenizer) -> list[str]:
    """llama.cpp's tokens for all evaluation texts against the checkpoint's."""
    job.say("tokenizing with llama.cpp")
    text = tokenization_text(tokenizer)
    expected = tokenizer.encode(text)
    with llama.open_model(job.file.paths[0], vocabulary_only=True) as model:
        found = model.tokenize(text)
    if found == expected:
        return []
    first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
    around = tokenizer.decode(expected[max(0, first - 3) : first + 3])
    return [f"llama.cpp tokenizes otherwise than the checkpoint, first at token {first}, near {around!r}"]


def _run_exact(job: _Job) -> Exact:
    """Conversion through F32 twins, one window of layers after the other; the worst window counts."""
    limit = FULL_TWIN_BYTES if job.is_full else QUICK_TWIN_BYTES
    windows = plan_windows(job.stored, job.texts, max_bytes=limit, is_full=job.is_full)
    worst, decode, divergence = NOT_RUN, None, None
    for window in windows:
        job.say(f"running {_describe(window)} exactly, through an F32 twin")
        part = window_graph(job.stored, window)
        texts = decided_parts(part, [window.token_ids(text) for text in job.texts])
        if not texts:
            continue
        with _twin(job, window) as model:
            with model.session(positions=max(map(len, texts)), is_exact=True) as session:
                numbers = compare_exact(part, texts, session.logits).judged(CONVERSION_BOUND)
                if decode is None:
                    decode = decode_difference(session.run, decode_text(texts, is_full=job.is_full))
            if numbers.status == "fail" and divergence is None:
                divergence = _find_divergence(model, part, texts[0], window)
        if worst.mean_kld is None or (numbers.mean_kld or 0.0) > worst.mean_kld:
            worst = numbers
    description = _describe_all(windows, job.stored)
    return Exact(conversion=worst, decode=decode, divergence=divergence, description=description)


@contextmanager
def _twin(job: _Job, window: Window) -> Iterator[llama.LlamaModel]:
    oracle = read_graph(job.file, job.original, decoder="gguf-py")
    with tempfile.TemporaryDirectory(prefix="qwen3-export-twin-", dir=job.work_dir) as folder:
        path = Path(folder) / "twin.gguf"
        write_twin(job.file, oracle, path, window=window)
        with llama.open_model(path, threads=job.threads) as model:
            yield model


def _find_divergence(
    model: llama.LlamaModel, part: Graph, tokens: Sequence[int], window: Window
) -> FirstDivergence | None:
    found = localise(part, tokens, lambda text: observe_sites(model, text), first_layer=window.first)
    return found or FirstDivergence(layer=None, site="logits", relative=0.0)


def _run_shipped(job: _Job, *, can_run: bool) -> Shipped:
    """The file as it is; without a runtime, only what the stored values cost."""
    if not can_run:
        job.say("comparing the stored values with the original")
        return Shipped(numbers=compare_shipped(job.original, job.stored, job.texts, run=None))
    job.say("running the file as shipped")
    arithmetic = Arithmetic(round_activations=round_activations, make_cache=HalfPrefillCache)
    with (
        llama.open_model(job.file.paths[0], threads=job.threads) as model,
        model.session(positions=max(map(len, job.texts))) as session,
    ):
        numbers = compare_shipped(job.original, job.stored, job.texts, run=session.logits, arithmetic=arithmetic)
        decode = decode_difference(session.run, decode_text(job.texts, is_full=job.is_full))
    return Shipped(numbers=numbers, decode=decode)


def _artifact(file: GgufFile, graph: Graph) -> Artifact:
    return Artifact(
        name=file.paths[0].name,
        target="gguf",
        recipe=str(file.metadata.get("qwen3_export.recipe") or _file_type(file)),
        method=_method(file),
        model=graph.name,
        size_bytes=file.size_bytes,
        bits_per_weight=file.bits_per_weight,
        runtime=Runtime(name="llama.cpp (llama-cpp-python)", version=llama.runtime_version()),
        packages=PACKAGES,
        calibration=recorded_calibration(file),
    )


def _method(file: GgufFile) -> str:
    return str(file.metadata.get("qwen3_export.method", "unknown"))


def _file_type(file: GgufFile) -> str:
    """The recipe that another writer's file names: ``q4_k_m`` for file type 15."""
    from gguf import LlamaFileType

    try:
        name = str(LlamaFileType(file.metadata.get("general.file_type", -1)).name)
    except ValueError:
        return "unknown"
    return name.removeprefix("ALL_").removeprefix("MOSTLY_").lower()


def _describe(window: Window) -> str:
    return f"layers {window.first} to {window.first + window.count - 1}"


def _describe_all(windows: Sequence[Window], graph: Graph) -> str:
    covered = sum(window.count for window in windows)
    layers = f"{covered} of {graph.config.num_hidden_layers} layers"
    if len(windows) > 1:
        layers += f" in {len(windows)} twins"
    vocabulary = windows[0].vocabulary
    rows = "whole vocabulary" if vocabulary is None else f"{len(vocabulary):,} vocabulary rows"
    return f"{layers}, {rows}"
