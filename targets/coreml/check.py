"""The check of a Core ML folder: what the package says, values, and the four numbers through the MIL executor.

``conversion`` and ``decode`` run the saved program exactly: every sum in fp32, nothing rounded. ``shipped`` and
``end_to_end`` run it as a device that computes in fp16 throughout would round it, and the first operation whose result
is not finite is named; on a Mac, Core ML itself runs it there. Kernels of the Neural Engine and of GPUs are not
modelled.
"""

# T tokens  I in_features

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from qwen3_export.calibration.provenance import PREFIX, calibration_or_none, read_scales_record, recorded
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import ExportError
from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.check import (
    Arithmetic,
    HalfPrefillCache,
    ShippedNumbers,
    cache_difference,
    compare_exact,
    compare_shipped,
    decode_difference,
)
from qwen3_export.parity.findings import Artifact, Exact, Findings, Shipped
from qwen3_export.parity.judgement import ROUNDING_METHODS, decode_text, longest_text, moved_by
from qwen3_export.parity.localise import localise
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.opaque import OPAQUE_FORM, run_opaque
from qwen3_export.parity.prompts import Prompt, tokenize_prompts
from qwen3_export.parity.report import FirstDivergence, Gates, Report, Runtime
from qwen3_export.reference.probe import Place, Site
from qwen3_export.targets.coreml import run
from qwen3_export.targets.coreml.metadata_check import context_length, interface_differences, metadata_differences
from qwen3_export.targets.coreml.mil import open_package
from qwen3_export.targets.coreml.names import site_name
from qwen3_export.targets.coreml.read import CoremlFile, open_coreml, read_graph, tensor_differences
from qwen3_export.targets.coreml.run import CoremlSession, Runs
from qwen3_export.targets.coreml.values import check_values

__all__ = ["check_coreml"]

# Measured: 1e-12 on the demo model for every recipe. A wrong eps (1e-5) gives 1e-5 and more.
CONVERSION_BOUND = 1e-9
# The floor rounds what is multiplied and what is cached to fp16, not every result between: 20 times it was measured.
FP16_FLOORS = 64.0

PACKAGES = ("qwen3-export", "coremltools", "torch", "numpy", "tokenizers")
CACHE_CHUNK, LARGE_DECODE_TOKENS = 7, 9
EXACT_FORM = "all layers, every sum in fp32"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One check: what is compared with what, and how thoroughly."""

    file: CoremlFile
    original: Graph
    stored: Graph
    prompts: tuple[Prompt, ...]
    is_full: bool
    say: Say

    @property
    def texts(self) -> list[list[int]]:
        return [list(prompt.tokens) for prompt in self.prompts]

    @property
    def is_half(self) -> bool:
        """Whether the program computes in fp16."""
        return any(weight.format != "F32" for weight in self.stored)

    @property
    def decode_text(self) -> list[int]:
        """What runs token by token; little, where every run decodes every weight."""
        text = decode_text(self.texts, is_full=self.is_full)
        return text if run.keeps_weights(self.original.num_parameters) else text[:LARGE_DECODE_TOKENS]

    def session(self, runs: Runs) -> CoremlSession:
        return CoremlSession(self.file.package, runs=runs, num_parameters=self.original.num_parameters)


def check_coreml(
    path: Path,
    graph: Graph,
    tokenizer: Tokenizer,
    *,
    full: bool = False,
    gates: Gates | None = None,
    say: Say | None = None,
) -> Report:
    """Compare an exported folder (or the package in it) with the checkpoint that it was made of.

    Raises CheckpointError where there is no package that can be read, MissingExtraError without coremltools;
    whatever else is wrong is in the report.
    """
    started = time.monotonic()
    say = say or (lambda _text: None)
    say("reading the package back")
    file = open_coreml(path)
    missing = tensor_differences(file, graph)
    if missing and PREFIX + "version" not in file.metadata:
        opaque = _opaque(file, graph, tokenizer, is_full=full, say=say)
        return opaque.report(_artifact(file, graph), gates=gates, seconds=time.monotonic() - started)
    problems = [*metadata_differences(file, graph, tokenizer), *missing]
    values = None
    prompts: tuple[Prompt, ...] = ()
    exact, shipped = Exact(description=EXACT_FORM), Shipped(numbers=ShippedNumbers(quantization=NOT_RUN))
    if not missing:
        stored = read_graph(file, graph)
        expected, wrong = moved_by(graph, lambda: read_scales_record(file.metadata))
        problems += wrong
        is_solved = recorded(file.metadata, "method") not in ROUNDING_METHODS
        values = check_values(stored, expected, is_full=full, is_solved=is_solved)
        longest = min(longest_text(graph), context_length(file) or 1)
        prompts = tokenize_prompts(tokenizer, quick=not full, max_tokens=longest)
        job = _Job(file=file, original=graph, stored=stored, prompts=prompts, is_full=full, say=say)
        try:
            exact = _run_exact(job)
            shipped, overflow = _run_shipped(job)
            problems += overflow
        except ExportError as error:  # the program cannot be run
            problems.append(str(error))
    found = Findings(exact=exact, shipped=shipped, problems=problems, values=values, prompts=prompts, is_full=full)
    return found.report(_artifact(file, graph), gates=gates, seconds=time.monotonic() - started)


def _opaque(file: CoremlFile, graph: Graph, tokenizer: Tokenizer, *, is_full: bool, say: Say) -> Findings:
    """What can be said of another tool's package, whose weights go by other names."""
    shipped = Shipped(numbers=ShippedNumbers(quantization=NOT_RUN))
    problems = interface_differences(file, graph)
    longest = min(longest_text(graph), context_length(file) or 1)
    prompts = tokenize_prompts(tokenizer, quick=not is_full, max_tokens=longest)
    if not problems:
        say("running another tool's package as fp16 rounds it, against the original")
        try:
            session = CoremlSession(file.package, runs="fp16", num_parameters=graph.num_parameters)
            shipped = run_opaque(graph, [list(prompt.tokens) for prompt in prompts], session.logits)
        except ExportError as error:  # the program cannot be run
            problems.append(str(error))
    return Findings(
        exact=Exact(description=OPAQUE_FORM), shipped=shipped, problems=problems, prompts=prompts, is_full=is_full
    )


def _run_exact(job: _Job) -> Exact:
    """Conversion and decoding without rounding; where it is out of bounds, the first site that is."""
    job.say("running the program exactly")
    session = job.session("exact")
    numbers = compare_exact(job.stored, job.texts, session.logits).judged(CONVERSION_BOUND)
    decode = decode_difference(session.run, job.decode_text)
    cache = cache_difference(job.stored, job.decode_text, session.caches(job.decode_text, chunk=CACHE_CHUNK))
    divergence = _find_divergence(job) if numbers.status == "fail" else None
    return Exact(description=EXACT_FORM, conversion=numbers, decode=decode, cache=cache, divergence=divergence)


def _find_divergence(job: _Job) -> FirstDivergence | None:
    """The first layer and place where hidden states part from the reference's, by the names of the values."""
    config = job.original.config
    names = {site_name(site): (site, 1.0) for site in _sites(job.original)}
    # Without Core ML's own operator for attention, queries carry the scale of the scores.
    queries = (Site(Place.Q_ROPE, layer) for layer in range(config.num_hidden_layers))
    names |= {f"{site_name(site)}_scaled": (site, config.head_dim**0.5) for site in queries}
    package = open_package(job.file.package)

    def sites(tokens: Sequence[int]) -> dict[Site, np.ndarray]:
        found: dict[Site, np.ndarray] = {}

        def watch(_kind: str, name: str, value: Tensor) -> None:
            if name in names:
                site, scale = names[name]
                found[site] = _by_token(value) * scale

        package.run(run.feed(tokens), state=package.new_state(), watch=watch)
        return found

    return localise(job.stored, job.texts[0], sites)


def _run_shipped(job: _Job) -> tuple[Shipped, list[str]]:
    """The package as devices compute it, and what left the finite numbers."""
    is_mac = run.can_run_coreml()
    job.say("running the package through Core ML" if is_mac else "running the program as fp16 rounds it")
    session = job.session("coreml" if is_mac else "fp16")
    numbers = compare_shipped(job.original, job.stored, job.texts, run=session.logits, arithmetic=_arithmetic(job))
    decode = decode_difference(session.run, job.decode_text)
    shipped = Shipped(numbers=numbers, decode=decode, floors=FP16_FLOORS)
    if session.overflow is None:
        return shipped, []
    where = session.overflow
    told = "infinite" if where.kind == "inf" else "no number"
    return shipped, [f"{where.output} ({where.op}) is {told} where results are rounded to fp16"]


def _arithmetic(job: _Job) -> Arithmetic:
    """What fp16 costs what is multiplied and what is cached."""
    if not job.is_half:
        return Arithmetic(make_cache=HalfPrefillCache)

    def round_activations(x_TI: Tensor, _weight: Weight) -> Tensor:
        return x_TI.to(torch.float16).float()

    return Arithmetic(round_activations=round_activations, make_cache=HalfPrefillCache)


def _sites(graph: Graph) -> Iterator[Site]:
    for layer in range(graph.config.num_hidden_layers):
        for place in Place:
            yield Site(place, layer)
    yield Site(Place.FINAL)


def _by_token(value: Tensor) -> np.ndarray:
    """A copy of [1, T, D], or of heads [1, N, T, H], as the reference has them: tokens first."""
    return np.array((value[0].transpose(0, 1) if value.ndim == 4 else value[0]).numpy())


def _artifact(file: CoremlFile, graph: Graph) -> Artifact:
    is_mac = run.can_run_coreml()
    stored = {blob.offset: blob.num_bytes for parts in file.constants.values() for blob in parts.values()}
    return Artifact(
        name=file.folder.name,
        target="coreml",
        recipe=recorded(file.metadata, "recipe"),
        method=recorded(file.metadata, "method"),
        model=graph.name,
        size_bytes=file.size_bytes,
        bits_per_weight=8 * sum(stored.values()) / graph.num_parameters,
        runtime=Runtime(
            name="Core ML" if is_mac else "MIL executor (fp16, no device's kernels)", version=run.coremltools_version()
        ),
        packages=PACKAGES,
        calibration=calibration_or_none(file.metadata),
    )
