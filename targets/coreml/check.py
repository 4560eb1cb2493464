"""The check of a Core ML folder: what the package says, values, and the four numbers through the MIL executor.

``conversion`` and ``decode`` run the saved program exactly: every sum in fp32, nothing rounded. ``shipped`` and
``end_to_end`` run it as a device that computes in fp16 throughout would round it, and the first operation whose result
is not finite is named; on a Mac, Core ML itself runs it there. Kernels of the Neural Engine and of GPUs are not
modelled.
"""

# T tokens  I in_features

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.provenance import (
    PREFIX,
    allocation_or_none,
    calibration_or_none,
    read_digests_record,
    read_scales_record,
    recorded,
    tuning_or_none,
)
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.compare import (
    Arithmetic,
    HalfPrefillCache,
    ShippedNumbers,
    cache_difference,
    compare_exact,
    compare_shipped,
    decode_difference,
)
from qwen3_export.parity.findings import Artifact, Exact, Observed, Shipped
from qwen3_export.parity.judgement import ROUNDING_METHODS, decode_text, longest_text
from qwen3_export.parity.localise import localise
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.opaque import run_opaque
from qwen3_export.parity.report import FirstDivergence, Runtime
from qwen3_export.parity.subject import Job, RunForeign
from qwen3_export.parity.values import ValueCheck
from qwen3_export.quantizers.transforms import Fold
from qwen3_export.reference.probe import Place, Site
from qwen3_export.targets.coreml import run
from qwen3_export.targets.coreml.metadata_check import context_length, interface_differences, metadata_differences
from qwen3_export.targets.coreml.mil import open_package
from qwen3_export.targets.coreml.names import site_name
from qwen3_export.targets.coreml.read import CoremlFile, open_coreml, read_graph, tensor_differences
from qwen3_export.targets.coreml.run import CoremlSession, Runs
from qwen3_export.targets.coreml.values import check_values

__all__ = ["CoremlSubject", "open_subject"]

# Measured: 1e-12 on the demo model for every recipe. A wrong eps (1e-5) gives 1e-5 and more.
CONVERSION_BOUND = 1e-9
# The floor rounds what is multiplied and what is cached to fp16, not every result between: 20 times it was measured.
FP16_FLOORS = 64.0

PACKAGES = ("qwen3-export", "coremltools", "torch", "numpy", "tokenizers")
CACHE_CHUNK, LARGE_DECODE_TOKENS = 7, 9
EXACT_FORM = "all layers, every sum in fp32"


def open_subject(path: Path, graph: Graph, tokenizer: Tokenizer, *, threads: int | None = None) -> CoremlSubject:
    """Read an exported folder (or the package in it) back.

    Raises CheckpointError where there is no package that can be read, MissingExtraError without coremltools.
    """
    del threads  # torch's are set for the whole process
    file = open_coreml(path)
    missing = tensor_differences(file, graph)
    is_foreign = bool(missing) and PREFIX + "version" not in file.metadata
    interface = interface_differences(file, graph)
    problems = interface if is_foreign else metadata_differences(file, graph, tokenizer)
    return CoremlSubject(
        file=file,
        original=graph,
        stored=None if missing else read_graph(file, graph),
        is_foreign=is_foreign,
        problems=tuple(problems if is_foreign else [*problems, *missing]),
        # A package is run only where its inputs and states are the usual ones; states of another size can fill memory.
        can_run=not interface,
    )


@dataclass(frozen=True, kw_only=True)
class CoremlSubject:
    """A Core ML folder that was read back."""

    file: CoremlFile
    original: Graph
    stored: Graph | None
    is_foreign: bool
    problems: tuple[str, ...]
    can_run: bool

    @property
    def max_tokens(self) -> int:
        return max(1, min(longest_text(self.original), context_length(self.file)))

    @property
    def unrun(self) -> tuple[Exact, Shipped]:
        return Exact(description=EXACT_FORM), Shipped(numbers=ShippedNumbers(quantization=NOT_RUN))

    @cached_property
    def artifact(self) -> Artifact:
        file, is_mac = self.file, run.can_run_coreml()
        stored = {blob.offset: blob.num_bytes for parts in file.constants.values() for blob in parts.values()}
        return Artifact(
            name=file.folder.name,
            target="coreml",
            recipe=recorded(file.metadata, "recipe"),
            method=recorded(file.metadata, "method"),
            model=self.original.name,
            size_bytes=file.size_bytes,
            bits_per_weight=8 * sum(stored.values()) / self.original.num_parameters,
            runtime=Runtime(
                name="Core ML" if is_mac else "MIL executor (fp16, no device's kernels)",
                version=run.coremltools_version(),
            ),
            packages=PACKAGES,
            calibration=calibration_or_none(file.metadata),
            allocation=allocation_or_none(file.metadata),
            tuning=tuning_or_none(file.metadata),
        )

    def read_scales(self) -> Mapping[Fold, NDArray[np.float32]]:
        return read_scales_record(self.file.metadata)

    def compare_values(self, stored: Graph, expected: Graph, *, is_full: bool) -> ValueCheck:
        is_solved = recorded(self.file.metadata, "method") not in ROUNDING_METHODS
        digests = read_digests_record(self.file.metadata)
        return check_values(stored, expected, is_full=is_full, is_solved=is_solved, digests=digests)

    def observe_runtime(self, job: Job) -> Observed:  # noqa: ARG002 (Core ML is given tokens)
        return Observed()

    def exact(self, job: Job) -> Exact:
        """Conversion and decoding without rounding; out of bounds, the first place that parts."""
        job.say("running the program exactly")
        session, text = self._session("exact"), self._decode_text(job)
        numbers = compare_exact(job.stored, job.texts, session.logits).judged(CONVERSION_BOUND)
        decode = decode_difference(session.run, text)
        cache = cache_difference(job.stored, text, session.caches(text, chunk=CACHE_CHUNK))
        divergence = self._find_divergence(job) if numbers.status == "fail" else None
        return Exact(description=EXACT_FORM, conversion=numbers, decode=decode, cache=cache, divergence=divergence)

    def shipped(self, job: Job) -> Shipped:
        """The package as devices compute it, and what left the finite numbers."""
        is_mac = run.can_run_coreml()
        job.say("running the package through Core ML" if is_mac else "running the program as fp16 rounds it")
        session, arithmetic = self._session("coreml" if is_mac else "fp16"), _arithmetic(job.stored)
        numbers = compare_shipped(self.original, job.stored, job.texts, run=session.logits, arithmetic=arithmetic)
        decode = decode_difference(session.run, self._decode_text(job))
        problems: tuple[str, ...] = ()
        if session.overflow is not None:
            where = session.overflow
            told = "infinite" if where.kind == "inf" else "no number"
            problems = (f"{where.output} ({where.op}) is {told} where results are rounded to fp16",)
        return Shipped(numbers=numbers, decode=decode, floors=FP16_FLOORS, problems=problems)

    @property
    def run_foreign(self) -> RunForeign | None:
        if not self.is_foreign:
            return None
        return lambda prompts, _is_full: run_opaque(self.original, prompts, self._session("fp16").logits)

    def _decode_text(self, job: Job) -> list[int]:
        """What runs token by token; little, where every run decodes every weight."""
        text = decode_text(job.texts, is_full=job.is_full)
        return text if run.keeps_weights(self.original.num_parameters) else text[:LARGE_DECODE_TOKENS]

    def _session(self, runs: Runs) -> CoremlSession:
        return CoremlSession(self.file.package, runs=runs, num_parameters=self.original.num_parameters)

    def _find_divergence(self, job: Job) -> FirstDivergence | None:
        """The first layer and place where hidden states part from the reference's, by the names of the values."""
        config = self.original.config
        names = {site_name(site): (site, 1.0) for site in _sites(self.original)}
        # Without Core ML's own operator for attention, queries carry the scale of the scores.
        queries = (Site(Place.Q_ROPE, layer) for layer in range(config.num_hidden_layers))
        names |= {f"{site_name(site)}_scaled": (site, config.head_dim**0.5) for site in queries}
        package = open_package(self.file.package)
        mask = run.mask_input(package)

        def sites(tokens: Sequence[int]) -> dict[Site, np.ndarray]:
            found: dict[Site, np.ndarray] = {}

            def watch(_kind: str, name: str, value: Tensor) -> None:
                if name in names:
                    site, scale = names[name]
                    found[site] = _by_token(value) * scale

            package.run(run.feed(tokens, mask=mask), state=package.new_state(), watch=watch)
            return found

        return localise(job.stored, job.texts[0], sites)


def _arithmetic(stored: Graph) -> Arithmetic:
    """What fp16 costs what is multiplied and what is cached."""
    if all(weight.format == "F32" for weight in stored):
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
