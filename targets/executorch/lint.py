"""Check what ExecuTorch's LLM runners (C++, Java, Swift) need of a program and of the files beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.parity.documents import document_differences, read_json
from qwen3_export.parity.tokenization import EXECUTORCH as LIMITS
from qwen3_export.parity.tokenization import token_remarks
from qwen3_export.targets.executorch.check import positions_of, program_differences, program_path
from qwen3_export.targets.executorch.recipes import untied
from qwen3_export.targets.executorch.run import Program
from qwen3_export.targets.executorch.stored import INDEX, constant_differences, read_index
from qwen3_export.targets.executorch.target import EXECUTORCH
from qwen3_export.targets.lint import Finding

__all__ = ["lint_executorch"]

RUNNERS = EXECUTORCH.consumers
# Asked by extension/llm/runner (constants.h); without the first it refuses a program, for the others it has defaults.
NEEDED = "get_max_seq_len"
METHODS = (
    "get_bos_id",
    "get_eos_ids",
    "get_max_context_len",
    "get_n_layers",
    "get_vocab_size",
    "use_kv_cache",
    "use_sdpa_with_kv_cache",
    "enable_dynamic_shape",
)


def lint_executorch(path: Path, graph: Graph, tokenizer: Tokenizer) -> Iterator[Finding]:
    """What the program says of itself, its tables, tokenizer and template, against the checkpoint."""
    program_file = program_path(path)
    program, whole = Program(program_file), untied(graph)
    is_own = (program_file.parent / INDEX).exists()
    if program.refusal is not None:
        yield Finding(text=program.refusal, consumers=RUNNERS)
    for name in (NEEDED, *METHODS):
        if program.constant(name) is None:
            text = f"the program has no method {name}, which runners ask for"
            yield Finding(text=text, consumers=RUNNERS, is_error=is_own or name == NEEDED)
    texts = [
        *program_differences(program, whole, tokenizer, is_own=is_own),
        *document_differences(program_file.parent, tokenizer),
    ]
    if is_own:
        document = read_index(program_file.parent)
        texts += constant_differences(program_file, whole, document, context=positions_of(program, whole))
    if (read_json(program_file.parent / "tokenizer.json") or {}).get("normalizer") is not None:
        texts.append("tokenizer.json has a normalizer, with which runners lose accents; export again, or make it null")
    for text in texts:
        yield Finding(text=text, consumers=RUNNERS)
    for text in token_remarks(tokenizer, LIMITS):
        yield Finding(text=text, consumers=RUNNERS, is_error=False)
    if not is_own:
        yield Finding(
            text="whether its weights and layers are the checkpoint's is not known: the program is another tool's, and "
            "does not say where they lie; `check` compares what it computes",
            consumers=RUNNERS,
            is_error=False,
        )
    sequence, positions = (program.constant(name) for name in ("get_max_seq_len", "get_max_context_len"))
    if isinstance(sequence, int) and isinstance(positions, int) and sequence < positions:
        yield Finding(
            text=f"get_max_seq_len {sequence} is less than get_max_context_len {positions}: ExecuTorch's TextLLMRunner "
            "takes the cache for a ring then, and fails at its end; let max_new_tokens be at most the context minus "
            "the prompt",
            consumers=RUNNERS,
            is_error=False,
        )
    yield Finding(
        text="the tokenizer's pattern looks ahead: build runners with support for that (SUPPORT_REGEX_LOOKAHEAD)",
        consumers=RUNNERS,
        is_error=False,
    )
