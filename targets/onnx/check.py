"""The check of an ONNX folder: configs, values, and the four numbers through onnxruntime.

``conversion`` and ``decode`` run the graph in its exact form (``surgery``) over the shipped data file; ``shipped`` and
``end_to_end`` run it as it is. What onnxruntime's int8 activations cost is modelled by the reference: a scale for each
block of a token, as long as the weight's blocks.
"""

# T tokens  I in_features

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from qwen3_export.calibration.provenance import PREFIX, calibration_or_none, read_scales_record, recorded
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.check import (
    Arithmetic,
    HalfPrefillCache,
    ShippedNumbers,
    cache_difference,
    compare_exact,
    compare_shipped,
    decided_parts,
    decode_difference,
)
from qwen3_export.parity.findings import Artifact, Exact, Findings, Shipped
from qwen3_export.parity.judgement import ROUNDING_METHODS, decode_text, longest_text, moved_by
from qwen3_export.parity.localise import localise
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.opaque import OPAQUE_FORM, run_opaque
from qwen3_export.parity.prompts import Prompt, tokenize_prompts
from qwen3_export.parity.report import FirstDivergence, Gates, Report, Runtime
from qwen3_export.quantizers.activations import Int8Activations
from qwen3_export.reference.model import KVCache
from qwen3_export.targets.affine_values import check_affine_values
from qwen3_export.targets.onnx import run, surgery
from qwen3_export.targets.onnx.metadata_check import metadata_differences
from qwen3_export.targets.onnx.read import OnnxFile, OnnxWeight, open_onnx, read_graph, tensor_differences
from qwen3_export.targets.onnx.run import OnnxSession

__all__ = ["check_onnx"]

# Measured: 1e-11 to 4e-11 on the demo model for every recipe. A wrong eps (1e-5) gives 1e-5 and more.
CONVERSION_BOUND = 1e-9
# The floor of plain fp16 rounds what is multiplied and what is cached, not every sum between: 8 times it was measured.
FP16_FLOORS, INT8_FLOORS = 32.0, 2.0

CACHE_CHUNK = 7
EXACT_FORM = "all layers, fp32 activations"
PACKAGES = ("qwen3-export", "onnxruntime", "onnxruntime-genai", "onnx", "torch", "numpy", "tokenizers")

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """One check: what is compared with what, and how thoroughly."""

    file: OnnxFile
    original: Graph
    stored: Graph
    prompts: tuple[Prompt, ...]
    is_full: bool
    threads: int | None
    say: Say

    @property
    def texts(self) -> list[list[int]]:
        return [list(prompt.tokens) for prompt in self.prompts]

    @property
    def is_half(self) -> bool:
        """Whether activations are fp16."""
        return any(weight.format == "F16" for weight in self.stored)

    def session(self, proto: object | None = None) -> OnnxSession:
        """The graph as shipped, or another form of it over the same data."""
        config = self.original.config
        if proto is None:
            return OnnxSession(self.file.graph_path, config, threads=self.threads)
        data = proto.SerializeToString()  # type: ignore[attr-defined]
        return OnnxSession(data, config, folder=self.file.graph_path.parent, threads=self.threads)


def check_onnx(
    path: Path,
    graph: Graph,
    tokenizer: Tokenizer,
    *,
    full: bool = False,
    gates: Gates | None = None,
    threads: int | None = None,
    say: Say | None = None,
) -> Report:
    """Compare an exported folder with the checkpoint that it was made of.

    Values are compared with the checkpoint's, moved by the scales that the graph records. Raises CheckpointError if
    there is no graph or no data file; whatever else is wrong is in the report.
    """
    started = time.monotonic()
    say = say or (lambda _text: None)
    say("reading the folder back")
    file = open_onnx(path)
    missing = tensor_differences(file, graph)
    if missing and PREFIX + "version" not in file.metadata:
        opaque = _opaque(file, graph, tokenizer, is_full=full, threads=threads, say=say)
        return opaque.report(_artifact(file, graph), gates=gates, seconds=time.monotonic() - started)
    problems = [*metadata_differences(file, graph, tokenizer), *missing]
    values, exact = None, Exact(description=EXACT_FORM)
    shipped = Shipped(numbers=ShippedNumbers(quantization=NOT_RUN), floors=_floors(file))
    prompts: tuple[Prompt, ...] = ()
    if not missing:
        stored = read_graph(file, graph)
        expected, wrong = moved_by(graph, lambda: read_scales_record(file.metadata))
        problems += wrong
        values = check_affine_values(
            stored, expected, is_full=full, is_solved=recorded(file.metadata, "method") not in ROUNDING_METHODS
        )
        prompts = tokenize_prompts(tokenizer, quick=not full, max_tokens=longest_text(graph))
        job = _Job(file=file, original=graph, stored=stored, prompts=prompts, is_full=full, threads=threads, say=say)
        can_run = run.is_installed()
        try:
            exact = _run_exact(job) if can_run else exact
            shipped = _run_shipped(job, can_run=can_run)
        except CheckpointError as error:  # onnxruntime refuses the graph
            problems.append(str(error))
    found = Findings(exact=exact, shipped=shipped, problems=problems, values=values, prompts=prompts, is_full=full)
    return found.report(_artifact(file, graph), gates=gates, seconds=time.monotonic() - started)


def _opaque(
    file: OnnxFile, graph: Graph, tokenizer: Tokenizer, *, is_full: bool, threads: int | None, say: Say
) -> Findings:
    """What can be said of another tool's graph, whose weights go by other names."""
    shipped = Shipped(numbers=ShippedNumbers(quantization=NOT_RUN))
    problems = metadata_differences(file, graph, tokenizer)
    prompts = tokenize_prompts(tokenizer, quick=not is_full, max_tokens=longest_text(graph))
    if run.is_installed():
        say("running another tool's graph, whose weights cannot be read, against the original")
        try:
            session = OnnxSession(file.graph_path, graph.config, threads=threads)
            shipped = run_opaque(graph, [list(prompt.tokens) for prompt in prompts], session.logits)
        except CheckpointError as error:  # onnxruntime refuses the graph
            problems.append(str(error))
    return Findings(
        exact=Exact(description=OPAQUE_FORM), shipped=shipped, problems=problems, prompts=prompts, is_full=is_full
    )


def _run_exact(job: _Job) -> Exact:
    """Conversion and decoding without int8 or fp16 activations; where it is out of bounds, the first site that is."""
    job.say("running the graph exactly, with fp32 activations")
    texts = decided_parts(job.stored, job.texts)
    if not texts:
        return Exact(description=EXACT_FORM)
    proto = surgery.exact(job.file.proto, job.original.config)
    session = job.session(proto)
    numbers = compare_exact(job.stored, texts, session.logits).judged(CONVERSION_BOUND)
    text = decode_text(texts, is_full=job.is_full)
    decode = max(decode_difference(session.run, text), _padding_difference(session, text))
    cache = cache_difference(job.stored, text, session.caches(text, chunk=CACHE_CHUNK))
    divergence = _find_divergence(job, texts[0]) if numbers.status == "fail" else None
    return Exact(description=EXACT_FORM, conversion=numbers, decode=decode, cache=cache, divergence=divergence)


def _padding_difference(session: OnnxSession, text: Sequence[int]) -> float:
    """The largest difference of a logit between a text alone, and in a batch of two, padded on the right."""
    alone = session.logits(text).copy()
    short = text[: max(1, len(text) // 2)]
    found = session.padded_logits([short, text])
    return max(
        float(np.abs(found[0] - alone[: len(short)]).max()),
        float(np.abs(found[1] - alone).max()),
    )


def _find_divergence(job: _Job, text: Sequence[int]) -> FirstDivergence | None:
    """The first layer and place where hidden states part from the reference's."""
    session = job.session(surgery.observed(surgery.exact(job.file.proto, job.original.config), job.original))
    return localise(job.stored, text, lambda tokens: surgery.to_sites(dict(session.outputs(tokens)), job.original))


def _run_shipped(job: _Job, *, can_run: bool) -> Shipped:
    """The folder as it is; without a runtime, only what the stored values cost."""
    if not can_run:
        job.say("comparing the stored values with the original")
        return Shipped(numbers=compare_shipped(job.original, job.stored, job.texts, run=None))
    job.say("running the graph as shipped")
    session = job.session()
    numbers = compare_shipped(job.original, job.stored, job.texts, run=session.logits, arithmetic=_arithmetic(job))
    decode = decode_difference(session.run, decode_text(job.texts, is_full=job.is_full))
    return Shipped(numbers=numbers, decode=decode, floors=_floors(job.file))


def _arithmetic(job: _Job) -> Arithmetic:
    """What onnxruntime's CPU does to activations, by the attributes of the graph that is shipped."""
    has_int8 = _has_int8_activations(job.file)

    def round_activations(x_TI: Tensor, weight: Weight) -> Tensor:
        if job.is_half:
            x_TI = x_TI.half().float()
        if has_int8 and isinstance(weight, OnnxWeight):
            return Int8Activations(block_size=weight.number_format.group_size).round(x_TI, weight)
        return x_TI

    return Arithmetic(round_activations=round_activations, make_cache=HalfPrefillCache if job.is_half else KVCache)


def _has_int8_activations(file: OnnxFile) -> bool:
    return any(attributes.get("accuracy_level") == 4 for attributes in file.attributes.values())


def _floors(file: OnnxFile) -> float:
    is_half = any(place.dtype == "<f2" for place in file.initializers.values())
    return FP16_FLOORS if is_half and not _has_int8_activations(file) else INT8_FLOORS


def _artifact(file: OnnxFile, graph: Graph) -> Artifact:
    return Artifact(
        name=file.folder.name,
        target="onnx",
        recipe=recorded(file.metadata, "recipe"),
        method=recorded(file.metadata, "method"),
        model=graph.name,
        size_bytes=file.size_bytes,
        bits_per_weight=_bits_per_weight(file, graph),
        runtime=Runtime(name="onnxruntime", version=run.runtime_version()),
        packages=PACKAGES,
        calibration=calibration_or_none(file.metadata),
    )


def _bits_per_weight(file: OnnxFile, graph: Graph) -> float:
    """Bits of stored weights over their number; bytes that two initializers share count once."""
    places = {
        place.offset: place.num_bytes for place in file.initializers.values() if not place.name.endswith("_cache")
    }
    return 8 * sum(places.values()) / graph.num_parameters
