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
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from qwen3_export.calibration.provenance import read_calibration_record, read_scales_record, recorded
from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import CheckpointError
from qwen3_export.graph import Graph, Weight
from qwen3_export.parity.check import CHUNKS, Arithmetic, ShippedNumbers, compare_exact, compare_shipped, decided_parts
from qwen3_export.parity.documents import document_differences
from qwen3_export.parity.findings import Artifact, Exact, Findings, Shipped
from qwen3_export.parity.judgement import (
    DECODE_BOUND,
    ROUNDING_METHODS,
    SHIPPED_FLOORS,
    decode_text,
    longest_text,
    moved_by,
)
from qwen3_export.parity.metrics import NOT_RUN, Comparison
from qwen3_export.parity.opaque import OPAQUE_FORM, run_opaque
from qwen3_export.parity.prompts import Prompt, tokenize_prompts
from qwen3_export.parity.report import Decode, Gates, Report, Runtime
from qwen3_export.parity.suspect_models import explain_logits
from qwen3_export.quantizers.activations import Int8Activations
from qwen3_export.quantizers.floats import F32
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

__all__ = ["check_executorch", "program_differences", "program_path"]

# Measured: 2e-12 for fp32. For int8 activations half of the floor on the demo model, 7 % on its first two layers.
FP32_CONVERSION_BOUND, INT8_CONVERSION_FLOORS = 1e-9, 1.0

PACKAGES = ("qwen3-export", "executorch", "torchao", "torch", "numpy", "tokenizers")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ran:
    """What the program showed."""

    exact: Exact
    shipped: Shipped
    decode: Decode = field(default_factory=Decode)


def check_executorch(
    path: Path,
    graph: Graph,
    tokenizer: Tokenizer,
    *,
    full: bool = False,
    gates: Gates | None = None,
    say: Say | None = None,
) -> Report:
    """Compare an exported folder with the checkpoint that it was made of.

    A program of another tool has no index of its weights: its logits are compared with the original's, and what it says
    of itself. Raises CheckpointError where there is no program or its index is damaged; the rest is in the report.
    """
    started = time.monotonic()
    say, folder = say or (lambda _text: None), path if path.is_dir() else path.parent
    file = program_path(path)
    say("reading the folder back")
    whole = untied(graph)
    prompts = tokenize_prompts(tokenizer, quick=not full, max_tokens=longest_text(graph))
    problems = list(document_differences(folder, tokenizer))
    try:
        program = Program(file) if run.is_installed() else None
    except CheckpointError as error:  # ExecuTorch refuses the program
        program, problems = None, [*problems, str(error)]
    if program is not None:
        problems += program_differences(program, whole, tokenizer)
        prompts = _fitting(prompts, program)
    if not (folder / INDEX).exists():
        opaque = _opaque(program, graph, prompts, problems, is_full=full, say=say)
        return opaque.report(_artifact(file, graph, {}), gates=gates, seconds=time.monotonic() - started)
    document = read_index(folder)
    stored = read_weights(file, whole, document)
    problems += weight_differences(file, document)
    expected, wrong = moved_by(whole, lambda: read_scales_record(document))
    problems += wrong
    is_solved = recorded(document, "method") not in ROUNDING_METHODS
    values = check_affine_values(stored, expected, is_full=full, is_solved=is_solved)
    description = "all layers, " + ("fp32 twin" if full else "int8 activations modelled")
    ran = _Ran(exact=Exact(description=description), shipped=Shipped(numbers=ShippedNumbers(quantization=NOT_RUN)))
    try:
        if program is not None:
            context = int(program.constant("get_max_context_len") or 1)
            problems += constant_differences(file, whole, document, context=context)
        ran = _run(program, graph, stored, prompts, is_full=full, description=description, say=say)
    except CheckpointError as error:  # ExecuTorch cannot run the program
        problems.append(str(error))
    found = Findings(
        exact=ran.exact,
        shipped=ran.shipped,
        decode=ran.decode,
        problems=problems,
        values=values,
        prompts=prompts,
        is_full=full,
    )
    return found.report(_artifact(file, graph, document), gates=gates, seconds=time.monotonic() - started)


def program_path(path: Path) -> Path:
    """The program that is meant by a folder or a file."""
    if path.is_file():
        return path
    if (path / PROGRAM).exists():
        return path / PROGRAM
    found = sorted(path.glob("*.pte"))
    if len(found) != 1:
        raise CheckpointError(f"{path}: holds no {PROGRAM}; name the program, or the folder that an export has written")
    return found[0]


def _opaque(
    program: Program | None,
    graph: Graph,
    prompts: Sequence[Prompt],
    problems: Sequence[str],
    *,
    is_full: bool,
    say: Say,
) -> Findings:
    """What can be said of a program without an index."""
    shipped, decode = Shipped(numbers=ShippedNumbers(quantization=NOT_RUN)), Decode()
    if program is not None:
        say("running another tool's program token by token, against the original")
        texts = [list(prompt.tokens) for prompt in prompts]
        shipped = run_opaque(graph, texts, program.logits)
        largest = _chunk_difference(program, decode_text(texts, is_full=is_full))
        decode = Decode(shipped_max_abs_vs_prefill=largest)
    return Findings(
        exact=Exact(description=OPAQUE_FORM),
        shipped=shipped,
        decode=decode,
        problems=problems,
        prompts=prompts,
        is_full=is_full,
    )


def _run(
    program: Program | None,
    original: Graph,
    stored: Graph,
    prompts: Sequence[Prompt],
    *,
    is_full: bool,
    description: str,
    say: Say,
) -> _Ran:
    texts = [list(prompt.tokens) for prompt in prompts]
    if program is None:
        say("comparing the stored values with the original")
        numbers = compare_shipped(original, stored, texts, run=None)
        return _Ran(exact=Exact(description=description), shipped=Shipped(numbers=numbers))
    has_int8 = any(weight.role.layer is not None and weight.format != "F32" for weight in stored)
    arithmetic = Arithmetic(round_activations=_round_for_xnnpack) if has_int8 else Arithmetic()
    say("running the program token by token, against the reference with its arithmetic and the original")
    numbers = compare_shipped(original, stored, texts, run=program.logits, arithmetic=arithmetic, compares_model=True)
    twin = _twin_conversion(stored, texts, say=say) if has_int8 and is_full else None
    text = decode_text(texts, is_full=is_full)
    largest = _chunk_difference(program, text)
    bound = DECODE_BOUND
    if has_int8 and numbers.floor.max_abs is not None:
        bound += SHIPPED_FLOORS * numbers.floor.max_abs
    floor = numbers.floor.mean_kld or 0.0
    judged = numbers.modelled.judged(FP32_CONVERSION_BOUND + INT8_CONVERSION_FLOORS * floor)
    conversion = judged if twin is None or judged.status == "fail" else twin
    divergence = None
    if conversion.status == "fail":
        say("looking for a known mistake that gives these logits")
        divergence = explain_logits(stored, texts[0], program.logits, arithmetic=arithmetic)
    return _Ran(
        exact=Exact(description=description, conversion=conversion, divergence=divergence),
        shipped=Shipped(numbers=numbers),
        decode=Decode(
            max_abs_vs_prefill=largest,
            bound=bound,
            shipped_max_abs_vs_prefill=largest,
            shipped_bound=bound,
            status="pass" if largest <= bound else "fail",
        ),
    )


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


def _fitting(prompts: Sequence[Prompt], program: Program) -> tuple[Prompt, ...]:
    """The prompts, cut to what the program takes at once."""
    limit = int(program.constant("get_max_seq_len") or 0) - 1
    return tuple(replace(prompt, tokens=prompt.tokens[:limit]) for prompt in prompts) if limit > 0 else tuple(prompts)


def program_differences(program: Program, graph: Graph, tokenizer: Tokenizer) -> Iterator[str]:
    """What the program says of itself against the checkpoint."""
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
        found = [found] if isinstance(wanted, list) and not isinstance(found, list) else found
        if found != wanted:
            yield f"{name} gives {found}, the checkpoint has {wanted}"
    sequence, context = (program.constant(name) for name in ("get_max_seq_len", "get_max_context_len"))
    if not (sequence and context and sequence <= context <= config.max_position_embeddings):
        yield f"get_max_seq_len {sequence} and get_max_context_len {context} do not fit the model's positions"


def _artifact(program_path: Path, graph: Graph, document: dict[str, Any]) -> Artifact:
    size = program_path.stat().st_size
    return Artifact(
        name=program_path.parent.name if document else program_path.name,
        target="executorch",
        recipe=recorded(document, "recipe"),
        method=recorded(document, "method"),
        model=graph.name,
        size_bytes=size,
        bits_per_weight=8 * size / graph.num_parameters,
        runtime=Runtime(name="ExecuTorch (XNNPACK)", version=run.runtime_version()),
        packages=PACKAGES,
        calibration=read_calibration_record(document),
    )
