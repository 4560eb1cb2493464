"""The check of a GGUF file: metadata, values, and the four numbers through llama.cpp.

F32 twins give ``conversion``, the file itself ``shipped`` and ``end_to_end``, both ``decode``. What llama.cpp could not
survive is not run: a wrong head size trips an assertion that ends the process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from numpy import float32
from numpy.typing import NDArray

from qwen3_export.calibration.provenance import allocation_or_none, tuning_or_none
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.parity.compare import (
    Arithmetic,
    HalfPrefillCache,
    ShippedNumbers,
    compare_exact,
    compare_shipped,
    decided_parts,
    decode_difference,
)
from qwen3_export.parity.findings import Artifact, Exact, Observed, Shipped
from qwen3_export.parity.judgement import ROUNDING_METHODS, decode_text, longest_text
from qwen3_export.parity.localise import localise
from qwen3_export.parity.metrics import NOT_RUN
from qwen3_export.parity.report import FirstDivergence, Runtime
from qwen3_export.parity.subject import Job
from qwen3_export.parity.tokenization import LLAMA_CPP, compare_tokenization
from qwen3_export.parity.values import ValueCheck
from qwen3_export.quantizers.transforms import Fold
from qwen3_export.targets.gguf import llama
from qwen3_export.targets.gguf.activations import round_activations
from qwen3_export.targets.gguf.divergence import observe_sites
from qwen3_export.targets.gguf.metadata_check import metadata_differences
from qwen3_export.targets.gguf.read import (
    GgufFile,
    open_gguf,
    read_graph,
    recorded_calibration,
    recorded_digests,
    tensor_differences,
)
from qwen3_export.targets.gguf.scales import read_scales
from qwen3_export.targets.gguf.twin import Window, plan_windows, window_graph, write_twin
from qwen3_export.targets.gguf.values import check_values

__all__ = ["GgufSubject", "open_subject"]

# Measured: 1e-12 to 7e-12 on the demo model for every recipe.  A wrong eps (1e-5) gives 1e-5 and more.
CONVERSION_BOUND = 1e-9

# An F32 twin may take this much disk and memory (a single layer always may).
QUICK_TWIN_BYTES, FULL_TWIN_BYTES = 1 << 29, 4 << 30

PACKAGES = ("qwen3-export", "llama-cpp-python", "gguf", "torch", "numpy", "tokenizers")


def open_subject(path: Path, graph: Graph, tokenizer: Tokenizer, *, threads: int | None = None) -> GgufSubject:
    """Read a GGUF file back (of a split one, any part). Raises CheckpointError if it is no GGUF file at all."""
    file = open_gguf(path)
    differences = metadata_differences(file.metadata, graph, tokenizer)
    missing = tensor_differences(file, graph)
    return GgufSubject(
        file=file,
        original=graph,
        tokenizer=tokenizer,
        stored=None if missing else read_graph(file, graph),
        problems=(*map(str, differences), *missing),
        can_run=llama.is_installed() and all(difference.is_runnable for difference in differences),
        threads=threads,
    )


@dataclass(frozen=True, kw_only=True)
class GgufSubject:
    """A GGUF file that was read back; twins are written into the system's temporary folder."""

    file: GgufFile
    original: Graph
    tokenizer: Tokenizer
    stored: Graph | None
    problems: tuple[str, ...]
    can_run: bool
    threads: int | None
    # Other tools' files have the same names: what is missing there is missing.
    run_foreign: None = None

    @property
    def max_tokens(self) -> int:
        return longest_text(self.original)

    @property
    def unrun(self) -> tuple[Exact, Shipped]:
        return Exact(description="not run"), Shipped(numbers=ShippedNumbers(quantization=NOT_RUN))

    @cached_property
    def artifact(self) -> Artifact:
        file = self.file
        return Artifact(
            name=file.paths[0].name,
            target="gguf",
            recipe=str(file.metadata.get("qwen3_export.recipe") or _file_type(file)),
            method=_method(file),
            model=self.original.name,
            size_bytes=file.size_bytes,
            bits_per_weight=file.bits_per_weight,
            runtime=Runtime(name="llama.cpp (llama-cpp-python)", version=llama.runtime_version()),
            packages=PACKAGES,
            calibration=recorded_calibration(file),
            allocation=allocation_or_none(file.metadata),
            tuning=tuning_or_none(file.metadata),
        )

    def read_scales(self) -> Mapping[Fold, NDArray[float32]]:
        return read_scales(self.file.metadata)

    def compare_values(self, stored: Graph, expected: Graph, *, is_full: bool) -> ValueCheck:
        is_solved = _method(self.file) not in ROUNDING_METHODS
        digests = recorded_digests(self.file, self.original)
        return check_values(stored, expected, is_full=is_full, is_solved=is_solved, digests=digests)

    def observe_runtime(self, job: Job) -> Observed:
        """llama.cpp's tokens for all evaluation texts, and for every added token, against the checkpoint's."""
        job.say("tokenizing with llama.cpp")
        with llama.open_model(self.file.paths[0], vocabulary_only=True) as model:
            return compare_tokenization(
                self.tokenizer,
                LLAMA_CPP,
                encode=model.tokenize,
                encode_plain=lambda text: model.tokenize(text, add_special=True),
                is_full=job.is_full,
            )

    def exact(self, job: Job) -> Exact:
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
            with self._twin(window) as model:
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

    def shipped(self, job: Job) -> Shipped:
        """The file as it is, in llama.cpp's own arithmetic."""
        job.say("running the file as shipped")
        arithmetic = Arithmetic(round_activations=round_activations, make_cache=HalfPrefillCache)
        with (
            llama.open_model(self.file.paths[0], threads=self.threads) as model,
            model.session(positions=max(map(len, job.texts))) as session,
        ):
            numbers = compare_shipped(self.original, job.stored, job.texts, run=session.logits, arithmetic=arithmetic)
            decode = decode_difference(session.run, decode_text(job.texts, is_full=job.is_full))
        return Shipped(numbers=numbers, decode=decode)

    @contextmanager
    def _twin(self, window: Window) -> Iterator[llama.LlamaModel]:
        oracle = read_graph(self.file, self.original, decoder="gguf-py")
        with tempfile.TemporaryDirectory(prefix="qwen3-export-twin-") as folder:
            path = Path(folder) / "twin.gguf"
            write_twin(self.file, oracle, path, window=window)
            with llama.open_model(path, threads=self.threads) as model:
                yield model


def _find_divergence(
    model: llama.LlamaModel, part: Graph, tokens: Sequence[int], window: Window
) -> FirstDivergence | None:
    found = localise(part, tokens, lambda text: observe_sites(model, text), first_layer=window.first)
    return found or FirstDivergence(layer=None, site="logits", relative=0.0)


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
