"""The check of an ONNX folder: configs, values, and the four numbers through onnxruntime.

``conversion`` and ``decode`` run the graph in its exact form (``surgery``) over the shipped data file; ``shipped`` and
``end_to_end`` run it as it is. What onnxruntime's int8 activations cost is modelled by the reference: a scale for each
block of a token, as long as the weight's blocks.
"""

# T tokens  I in_features

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
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
    decided_parts,
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
from qwen3_export.quantizers.activations import Int8Activations
from qwen3_export.quantizers.transforms import Fold
from qwen3_export.reference.model import KVCache
from qwen3_export.targets.affine_values import check_affine_values
from qwen3_export.targets.onnx import genai, run, surgery
from qwen3_export.targets.onnx.metadata_check import metadata_differences
from qwen3_export.targets.onnx.read import OnnxFile, OnnxWeight, open_onnx, read_graph, tensor_differences
from qwen3_export.targets.onnx.run import OnnxSession, Side

__all__ = ["OnnxSubject", "open_subject"]

# Measured: 1e-11 to 4e-11 on the demo model for every recipe. A wrong eps (1e-5) gives 1e-5 and more.
CONVERSION_BOUND = 1e-9
# The floor of plain fp16 rounds what is multiplied and what is cached, not every sum between: 8 times it was measured.
FP16_FLOORS, INT8_FLOORS = 32.0, 2.0

CACHE_CHUNK = 7
STEPS = 2
EXACT_FORM = "all layers, fp32 activations"
PACKAGES = ("qwen3-export", "onnxruntime", "onnxruntime-genai", "onnx", "torch", "numpy", "tokenizers")


def open_subject(path: Path, graph: Graph, tokenizer: Tokenizer, *, threads: int | None = None) -> OnnxSubject:
    """Read an exported folder back. Raises CheckpointError if there is no graph or no data file."""
    file = open_onnx(path)
    missing = tensor_differences(file, graph)
    is_foreign = bool(missing) and PREFIX + "version" not in file.metadata
    differences = metadata_differences(file, graph, tokenizer, is_foreign=is_foreign)
    return OnnxSubject(
        file=file,
        original=graph,
        tokenizer=tokenizer,
        stored=None if missing else read_graph(file, graph),
        is_foreign=is_foreign,
        problems=tuple(differences if is_foreign else [*differences, *missing]),
        can_run=run.is_installed(),
        threads=threads,
    )


@dataclass(frozen=True, kw_only=True)
class OnnxSubject:
    """An ONNX folder that was read back."""

    file: OnnxFile
    original: Graph
    tokenizer: Tokenizer
    stored: Graph | None
    is_foreign: bool
    problems: tuple[str, ...]
    can_run: bool
    threads: int | None

    @property
    def max_tokens(self) -> int:
        return longest_text(self.original)

    @property
    def unrun(self) -> tuple[Exact, Shipped]:
        numbers = ShippedNumbers(quantization=NOT_RUN)
        return Exact(description=EXACT_FORM), Shipped(numbers=numbers, floors=_floors(self.file))

    @cached_property
    def artifact(self) -> Artifact:
        file = self.file
        return Artifact(
            name=file.folder.name,
            target="onnx",
            recipe=recorded(file.metadata, "recipe"),
            method=recorded(file.metadata, "method"),
            model=self.original.name,
            size_bytes=file.size_bytes,
            bits_per_weight=_bits_per_weight(file, self.original),
            runtime=Runtime(name="onnxruntime", version=run.runtime_version()),
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
        return check_affine_values(stored, expected, is_full=is_full, is_solved=is_solved, digests=digests)

    def observe_runtime(self, job: Job) -> Observed:
        """onnxruntime-genai's tokens and prompts; onnxruntime itself is given tokens."""
        is_for_genai = all((self.file.folder / name).exists() for name in ("genai_config.json", "tokenizer.json"))
        if not (is_for_genai and genai.is_installed()):
            return Observed()
        job.say("tokenizing with onnxruntime-genai")
        return genai.observe_genai(self.file.folder, self.tokenizer, is_full=job.is_full)

    def exact(self, job: Job) -> Exact:
        """Conversion and decoding without int8 or fp16 activations; out of bounds, the first place that parts."""
        job.say("running the graph exactly, with fp32 activations")
        texts = decided_parts(job.stored, job.texts)
        if not texts:
            return Exact(description=EXACT_FORM)
        session = self._session(surgery.exact(self.file.proto, self.original.config))
        numbers = compare_exact(job.stored, texts, session.logits).judged(CONVERSION_BOUND)
        text = decode_text(texts, is_full=job.is_full)
        padding = _padding_difference(session, text, sides=_padded_sides(self.file))
        decode = max(decode_difference(session.run, text), padding)
        cache = cache_difference(job.stored, text, session.caches(text, chunk=CACHE_CHUNK))
        divergence = self._find_divergence(job, texts[0]) if numbers.status == "fail" else None
        return Exact(description=EXACT_FORM, conversion=numbers, decode=decode, cache=cache, divergence=divergence)

    def shipped(self, job: Job) -> Shipped:
        """The graph as it is."""
        job.say("running the graph as shipped")
        session, arithmetic = self._session(), self._arithmetic(job)
        numbers = compare_shipped(self.original, job.stored, job.texts, run=session.logits, arithmetic=arithmetic)
        decode = decode_difference(session.run, decode_text(job.texts, is_full=job.is_full))
        return Shipped(numbers=numbers, decode=decode, floors=_floors(self.file))

    @property
    def run_foreign(self) -> RunForeign | None:
        if not self.is_foreign:
            return None
        return lambda prompts, _is_full: run_opaque(self.original, prompts, self._session().logits)

    def _session(self, proto: object | None = None) -> OnnxSession:
        """The graph as shipped, or another form of it over the same data."""
        config = self.original.config
        if proto is None:
            return OnnxSession(self.file.graph_path, config, threads=self.threads)
        data = proto.SerializeToString()  # type: ignore[attr-defined]
        return OnnxSession(data, config, folder=self.file.graph_path.parent, threads=self.threads)

    def _find_divergence(self, job: Job, text: Sequence[int]) -> FirstDivergence | None:
        """The first layer and place where hidden states part from the reference's."""
        original = self.original
        session = self._session(surgery.observed(surgery.exact(self.file.proto, original.config), original))
        return localise(job.stored, text, lambda tokens: surgery.to_sites(dict(session.outputs(tokens)), original))

    def _arithmetic(self, job: Job) -> Arithmetic:
        """What onnxruntime's CPU does to activations, by the attributes of the graph that is shipped."""
        has_int8, is_half = _has_int8_activations(self.file), any(weight.format == "F16" for weight in job.stored)

        def round_activations(x_TI: Tensor, weight: Weight) -> Tensor:
            if is_half:
                x_TI = x_TI.half().float()
            if has_int8 and isinstance(weight, OnnxWeight):
                return Int8Activations(block_size=weight.number_format.group_size).round(x_TI, weight)
            return x_TI

        return Arithmetic(round_activations=round_activations, make_cache=HalfPrefillCache if is_half else KVCache)


def _padded_sides(file: OnnxFile) -> tuple[Side, ...]:
    """The sides on which our graphs take padding; transformers.js pads on the left."""
    return ("right", "left") if recorded(file.metadata, "flavour") == "transformers.js" else ("right",)


def _padding_difference(session: OnnxSession, text: Sequence[int], *, sides: Sequence[Side]) -> float:
    """The largest difference of a logit between a text alone, and in a batch of three of different lengths.

    The last two tokens of each are given one by one.
    """
    alone = session.logits(text).copy()
    lengths = [max(1, len(text) // 2), len(text), max(1, len(text) // 3)]
    found = [
        (alone[:length], logits)
        for side in sides
        for length, logits in zip(
            lengths,
            session.padded_logits([text[:n] for n in lengths], side=side, steps=min(STEPS, min(lengths) - 1)),
            strict=True,
        )
    ]
    return max(float(np.abs(expected - logits).max()) for expected, logits in found)


def _has_int8_activations(file: OnnxFile) -> bool:
    return any(attributes.get("accuracy_level") == 4 for attributes in file.attributes.values())


def _floors(file: OnnxFile) -> float:
    is_half = any(place.dtype == "<f2" for place in file.initializers.values())
    return FP16_FLOORS if is_half and not _has_int8_activations(file) else INT8_FLOORS


def _bits_per_weight(file: OnnxFile, graph: Graph) -> float:
    """Bits of stored weights over their number; bytes that two initializers share count once."""
    places = {
        (place.file, place.offset): place.num_bytes
        for place in file.initializers.values()
        if not place.name.endswith("_cache")
    }
    num_bytes = sum(places.values()) or file.graph_path.stat().st_size  # weights in the graph itself
    return 8 * num_bytes / graph.num_parameters
