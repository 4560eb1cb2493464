"""Check what llama.cpp, Ollama and LM Studio need of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.targets.gguf.metadata_check import metadata_differences
from qwen3_export.targets.gguf.read import GgufFile, open_gguf, tensor_differences
from qwen3_export.targets.gguf.target import GGUF
from qwen3_export.targets.lint import Finding

__all__ = ["lint_gguf"]

ALL = GGUF.consumers
OLLAMA = ("Ollama",)


def lint_gguf(path: Path, graph: Graph, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Metadata and tensors against the checkpoint, then what single consumers want."""
    file = open_gguf(path)
    for text in [*map(str, metadata_differences(file.metadata, graph, tokenizer)), *tensor_differences(file, graph)]:
        yield Finding(text=text, consumers=ALL)
    yield from _file_type(file)
    if len(file.paths) > 1:
        yield Finding(
            text=f"the model is split into {len(file.paths)} files, and 'ollama create' takes one; export without "
            "`split_max_size`",
            consumers=OLLAMA,
        )
    if "tokenizer.chat_template" not in file.metadata:
        yield Finding(text="there is no chat template in the file; chats need one from elsewhere", consumers=ALL)
    if "general.name" not in file.metadata:
        yield Finding(text="general.name is missing: lists show the file's name", consumers=ALL, is_error=False)


def _file_type(file: GgufFile) -> Iterator[Finding]:
    """general.file_type is what lists and model pages show as the quantization."""
    from gguf import LlamaFileType

    number = file.metadata.get("general.file_type")
    known = {int(kind) for kind in LlamaFileType}
    if number is None:
        yield Finding(text="general.file_type is missing: the file is shown as unquantized", consumers=ALL)
    elif int(number) not in known:
        yield Finding(text=f"general.file_type {number} is none that llama.cpp knows", consumers=ALL)
