"""Check what llama.cpp, Ollama and LM Studio need of a GGUF file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.graph import Graph
from qwen3_export.parity.dialogues import same_text
from qwen3_export.parity.tokenization import LLAMA_CPP, token_remarks
from qwen3_export.targets.gguf.ends import bos_token_id, end_remarks
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
    yield from _split(file)
    yield from _tokens(tokenizer)
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


def _split(file: GgufFile) -> Iterator[Finding]:
    """Ollama merges the parts of a model when it imports them, if its Modelfile names each of them."""
    if len(file.paths) == 1:
        return
    modelfile, names = file.paths[0].with_name("Modelfile"), [path.name for path in file.paths]
    if not modelfile.is_file():
        yield Finding(
            text=f"the model is split into {len(names)} files: 'ollama create' needs a FROM line for each of them, as "
            "--modelfile writes, and older releases take one file only",
            consumers=OLLAMA,
            is_error=False,
        )
        return
    lines = modelfile.read_text(encoding="utf-8", errors="replace").splitlines()
    named = {Path(line.split(maxsplit=1)[1]).name for line in lines if line.upper().startswith("FROM ")}
    missing = [name for name in names if name not in named]
    if missing and len(missing) < len(names):  # else it is another file's
        yield Finding(text=f"the Modelfile has no FROM line for {', '.join(missing)}", consumers=OLLAMA)


def _tokens(tokenizer: Tokenizer) -> Iterator[Finding]:
    """What llama.cpp's tokenizer and template engine do otherwise, whatever a file says."""
    notes = [*token_remarks(tokenizer, LLAMA_CPP), *end_remarks(tokenizer)]
    template, bos = tokenizer.template, bos_token_id(tokenizer)
    if template is not None and bos is not None and template.tokens.get("bos_token") != tokenizer.decode([bos]):
        given = replace(template, tokens={**template.tokens, "bos_token": tokenizer.decode([bos])})
        if not same_text(template, given):
            notes.append(
                f"llama.cpp gives the chat template {tokenizer.decode([bos])} as bos_token, where transformers gives "
                f"{template.tokens.get('bos_token') or 'none'}: prompts differ"
            )
    for note in notes:
        yield Finding(text=note, consumers=ALL, is_error=False)
