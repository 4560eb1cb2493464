"""The check of an ExecuTorch folder: what the program says of itself, values, and the four numbers through its runtime.

XNNPACK has one form: int8 activations a token, which the reference models. Where no activation lies half-way between
two codes the two agree to 1e-13 in KL divergence; where one does, it may go either way, after which roundings part
layer by layer. So what is lowered has bounds as wide as int8 rounding itself, and ``--full`` lowers an fp32 twin of the
values read back as well, which agrees to 1e-12 where all is right. A program gives the last token's logits: positions
are run token by token through the KV cache, and whole chunks are held to that (``decode``).
"""

# T tokens  I in_features

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qwen3_export.calibration.provenance import (
    allocation_or_none,
    read_calibration_record,
    read_digests_record,
    read_scales_record,
    recorded,
    tuning_or_none,
)
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.compare import (
    CHUNKS,
    Arithmetic,
    ShippedNumbers,
    compare_exact,
    compare_shipped,
    decided_parts,
)
from qwen3_export.parity.documents import document_differences
from qwen3_export.parity.findings import Artifact, Exact, Observed, Shipped
from qwen3_export.parity.judgement import DECODE_BOUND, ROUNDING_METHODS, SHIPPED_FLOORS, decode_text, longest_text
from qwen3_export.parity.metrics import NOT_RUN, Comparison
from qwen3_export.parity.opaque import run_opaque
from qwen3_export.parity.prompts import Prompt
from qwen3_export.parity.report import Decode, Runtime
from qwen3_export.parity.subject import Job, RunForeign, Say
from qwen3_export.parity.suspect_models import explain_logits
from qwen3_export.parity.values import ValueCheck
from qwen3_export.quantizers.activations import Int8Activations
from qwen3_export.quantizers.floats import F32
from qwen3_export.quantizers.transforms import Fold
from qwen3_export.targets.affine_values import check_affine_values
from qwen3_export.targets.executorch import run
from qwen3_export.targets.executorch.export import PROGRAM
from qwen3_export.targets.executorch.recipes import ExecutorchFormat, untied
from qwen3_export.targets.executorch.run import Program
from qwen3_export.targets.executorch.stored import (
    INDEX,
    StoredWeight,
    constant_differences,
    read_index,
    read_weights,
    weight_differences,
)
from qwen3_export.targets.executorch.tokens import observe_tokenizer

__all__ = ["ExecutorchSubject", "open_subject", "positions_of", "program_differences", "program_path"]

# Measured: 2e-12 for fp32. For int8 activations half of the floor on the demo model, 7 % on its first two layers.
FP32_CONVERSION_BOUND, INT8_CONVERSION_FLOORS = 1e-9, 1.0

PACKAGES = ("qwen3-export", "executorch", "torchao", "torch", "numpy", "tokenizers")


def open_subject(path: Path, graph: Graph, tokenizer: Tokenizer, *, threads: int | None = None) -> ExecutorchSubject:
    """Read an exported folder (or the program in it) back.

    Raises CheckpointError where there is no program, or its index is damaged. A program of another tool has no index
    of its weights.
    """
    del threads  # XNNPACK takes as many as it likes
    folder, file, whole = path if path.is_dir() else path.parent, program_path(path), untied(graph)
    index = read_index(folder) if (folder / INDEX).exists() else None
    problems = list(document_differences(folder, tokenizer))
    if index is None:  # another tool's program often lies apart from its documents
        problems = [text for text in problems if not text.endswith("is missing")]
    program: Program | None = None
    try:
        program = Program(file) if run.is_installed() else None
        if program is not None:
            problems += program_differences(program, whole, tokenizer, is_own=index is not None)
            problems += [] if program.refusal is None else [program.refusal]
    except CheckpointError as error:  # ExecuTorch refuses the program
        program, problems = None, [*problems, str(error)]
    if index is not None:
        problems += weight_differences(file, index)
    return ExecutorchSubject(
        file=file,
        checkpoint=graph,
        original=whole,
        tokenizer=tokenizer,
        program=program,
        index=index,
        stored=None if index is None else read_weights(file, whole, index),
        problems=tuple(problems),
    )


@dataclass(kw_only=True)
class ExecutorchSubject:
    """A program that was read back; ``original`` has a head of its own, ``index`` says where weights lie in the file.

    The runtime has one form: ``exact`` runs it, and keeps what ``shipped`` will say.
    """

    file: Path
    checkpoint: Graph
    original: Graph
    tokenizer: Tokenizer
    program: Program | None
    index: dict[str, Any] | None
    stored: Graph | None
    problems: tuple[str, ...]
    _shipped: Shipped = field(default_factory=lambda: Shipped(numbers=ShippedNumbers(quantization=NOT_RUN)))

    @property
    def max_tokens(self) -> int:
        """What the program takes at once."""
        longest = longest_text(self.checkpoint)
        limit = None if self.program is None else self.program.max_tokens
        return longest if limit is None else min(longest, limit)

    @property
    def can_run(self) -> bool:
        return self.program is not None and self.program.refusal is None

    @property
    def unrun(self) -> tuple[Exact, Shipped]:
        shipped = Shipped(numbers=ShippedNumbers(quantization=NOT_RUN), judged_decode=Decode())
        return Exact(description="all layers, int8 activations modelled"), shipped

    @cached_property
    def artifact(self) -> Artifact:
        document, size = self.index or {}, self.file.stat().st_size
        return Artifact(
            name=self.file.parent.name if document else self.file.name,
            target="executorch",
            recipe=recorded(document, "recipe"),
            method=recorded(document, "method"),
            model=self.checkpoint.name,
            size_bytes=size,
            bits_per_weight=8 * size / self.checkpoint.num_parameters,
            runtime=Runtime(name="ExecuTorch (XNNPACK)", version=run.runtime_version()),
            packages=PACKAGES,
            calibration=read_calibration_record(document),
            allocation=allocation_or_none(document),
            tuning=tuning_or_none(document),
        )

    def read_scales(self) -> Mapping[Fold, NDArray[np.float32]]:
        return read_scales_record(self.index or {})

    def compare_values(self, stored: Graph, expected: Graph, *, is_full: bool) -> ValueCheck:
        is_solved = recorded(self.index or {}, "method") not in ROUNDING_METHODS
        digests = read_digests_record(self.index or {})
        return check_affine_values(stored, expected, is_full=is_full, is_solved=is_solved, digests=digests)

    def observe_runtime(self, job: Job) -> Observed:
        """RoPE's tables and eps, which lie in the program where the index says; and the tokens of the runners."""
        assert self.program is not None
        assert self.index is not None
        context = positions_of(self.program, self.original)
        wrong = constant_differences(self.file, self.original, self.index, context=context)
        found = observe_tokenizer(self.file.parent, self.tokenizer, is_full=job.is_full)
        return Observed(problems=(*wrong, *found.problems), notes=found.notes)

    def exact(self, job: Job) -> Exact:
        """The program against the reference with its arithmetic; in a full check, an fp32 twin of its values too."""
        assert self.program is not None
        program, stored, texts = self.program, job.stored, job.texts
        has_int8 = any(weight.role.layer is not None and weight.format != "F32" for weight in stored)
        arithmetic = Arithmetic(round_activations=_round_for_xnnpack) if has_int8 else Arithmetic()
        job.say("running the program token by token, against the reference with its arithmetic and the original")
        numbers = compare_shipped(
            self.checkpoint, stored, texts, run=program.logits, arithmetic=arithmetic, compares_model=True
        )
        twin = _twin_conversion(stored, texts, say=job.say) if has_int8 and job.is_full else None
        largest = _chunk_difference(program, decode_text(texts, is_full=job.is_full))
        bound = DECODE_BOUND
        if has_int8 and numbers.floor.max_abs is not None:
            bound += SHIPPED_FLOORS * numbers.floor.max_abs
        floor = numbers.floor.mean_kld or 0.0
        judged = numbers.modelled.judged(FP32_CONVERSION_BOUND + INT8_CONVERSION_FLOORS * floor)
        conversion = judged if twin is None or judged.status == "fail" else twin
        divergence = None
        if conversion.status == "fail":
            job.say("looking for a known mistake that gives these logits")
            divergence = explain_logits(stored, texts[0], program.logits, arithmetic=arithmetic)
        decode = Decode(
            max_abs_vs_prefill=largest,
            bound=bound,
            shipped_max_abs_vs_prefill=largest,
            shipped_bound=bound,
            status="pass" if largest <= bound else "fail",
        )
        self._shipped = Shipped(numbers=numbers, judged_decode=decode)
        description = "all layers, " + ("fp32 twin" if job.is_full else "int8 activations modelled")
        return Exact(description=description, conversion=conversion, divergence=divergence)

    def shipped(self, job: Job) -> Shipped:  # noqa: ARG002 (the one form has been run)
        return self._shipped

    @property
    def run_foreign(self) -> RunForeign | None:
        return None if self.index is not None else self._run_foreign

    def _run_foreign(self, prompts: Sequence[Prompt], is_full: bool) -> Shipped:
        """Token by token, against the original, and chunks against that."""
        assert self.program is not None
        shipped = run_opaque(self.checkpoint, prompts, self.program.logits)
        text = decode_text([prompt.tokens for prompt in prompts], is_full=is_full)
        decode = Decode(shipped_max_abs_vs_prefill=_chunk_difference(self.program, text))
        return Shipped(numbers=shipped.numbers, judged_decode=decode)


def positions_of(program: Program, graph: Graph) -> int:
    """The positions of the cache as the program says, at most the checkpoint's: tables of that length are compared."""
    stated = program.constant("get_max_context_len")
    return min(max(stated, 1), graph.config.context_length) if isinstance(stated, int) else 1


def program_path(path: Path) -> Path:
    """The program that is meant by a folder or a file."""
    if path.is_file():
        return path
    if (path / PROGRAM).is_file():
        return path / PROGRAM
    found = sorted(file for file in path.glob("*.pte") if file.is_file())
    if not found:
        raise CheckpointError(f"{path}: holds no {PROGRAM}; name the program, or the folder that an export has written")
    if len(found) > 1:
        raise CheckpointError(f"{path}: holds {len(found)} programs; name one of them, such as {found[0]}")
    return found[0]


def _round_for_xnnpack(x_TI: Tensor, weight: Weight) -> Tensor:
    """Activations as XNNPACK rounds them; the operator for experts computes in fp32 (off Arm, where this runs)."""
    return x_TI if weight.role.expert is not None else Int8Activations(symmetric=False).round(x_TI, weight)


def _twin_conversion(stored: Graph, texts: Sequence[Sequence[int]], *, say: Say) -> Comparison:
    """The module over the values read back, lowered in fp32, against the reference."""
    from qwen3_export.targets.executorch.lower import lower
    from qwen3_export.targets.executorch.module import ExportModule

    say("lowering an fp32 twin of the values read back")
    length = max(map(len, texts)) + 1
    formats = {weight.name: _twin_format(weight) for weight in stored}
    with tempfile.TemporaryDirectory(prefix="qwen3-export-twin-") as folder:
        path = Path(folder) / PROGRAM
        module = ExportModule(stored, formats, max_context_len=length).eval()
        lower(module, path, max_seq_len=length, constants={})
        del module
        twin = Program(path)
        return compare_exact(stored, decided_parts(stored, texts), twin.logits).judged(FP32_CONVERSION_BOUND)


def _twin_format(weight: Weight) -> ExecutorchFormat:
    """Experts keep their codes: their operator has no other form, and computes in fp32 from them."""
    if weight.role.expert is None:
        return F32
    assert isinstance(weight, StoredWeight)
    return weight.number_format


def _chunk_difference(program: Program, text: Sequence[int]) -> float:
    """The largest difference of a logit between token by token, and chunks or one prefill."""
    single_TV = program.logits(text)
    sizes = {size for size in (*CHUNKS, len(text) - 1) if 0 < size < len(text)} | {len(text)}
    found = (pair for size in sorted(sizes) for pair in program.chunks(text, size))
    return max(float(np.abs(logits_V - single_TV[position]).max()) for position, logits_V in found)


def program_differences(program: Program, graph: Graph, tokenizer: Tokenizer, *, is_own: bool = True) -> Iterator[str]:
    """What the program says of itself against the checkpoint; another tool's may say nothing."""
    config = graph.config
    expected = {
        "get_n_layers": config.num_hidden_layers,
        "get_vocab_size": config.vocab_size,
        "get_eos_ids": list(tokenizer.generation.eos_token_ids),
        "use_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    for name, wanted in expected.items():
        found = program.constant(name)
        if found is None and not is_own:
            continue
        found = [found] if isinstance(wanted, list) and not isinstance(found, list) else found
        if found != wanted:
            yield f"{name} gives {found}, the checkpoint has {wanted}"
    if program.num_logits not in (None, config.vocab_size):
        yield f"forward gives logits for {program.num_logits} tokens, the checkpoint has {config.vocab_size}"
    sequence, context = (program.constant(name) for name in ("get_max_seq_len", "get_max_context_len"))
    if not is_own and (sequence is None or context is None):
        return
    are_numbers = isinstance(sequence, int) and isinstance(context, int)
    if not (are_numbers and 0 < sequence <= context <= config.context_length):
        yield f"get_max_seq_len {sequence} and get_max_context_len {context} do not fit the model's positions"
        return
    taken = program.max_tokens
    if taken is not None and taken < min(sequence, context - 1):
        yield (
            f"get_max_seq_len is {sequence}, and one call takes {taken} tokens: runners give a prompt in pieces of "
            f"get_max_seq_len, so prompts of {sequence} tokens and more fail; export the model again"
        )
