"""The tokenizer of ExecuTorch's LLM runners, which is written in C++ and comes with Python bindings of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.parity.findings import Observed
from qwen3_export.parity.tokenization import EXECUTORCH, compare_tokenization
from qwen3_export.targets.executorch.run import native_remarks_dropped

__all__ = ["observe_tokenizer"]


def observe_tokenizer(folder: Path, tokenizer: Tokenizer, *, is_full: bool) -> Observed:
    """Compare its tokens with the checkpoint's; nothing where its bindings or the folder's tokenizer are missing."""
    path = folder / "tokenizer.json"
    if importlib.util.find_spec("pytorch_tokenizers") is None or not path.exists():
        return Observed()
    try:
        with native_remarks_dropped():
            from pytorch_tokenizers import CppHFTokenizer

            library = CppHFTokenizer()
            library.load(str(path))
    except Exception as error:  # its bindings raise what C++ threw
        return Observed(problems=(f"ExecuTorch's tokenizer cannot read {path.name}: {error}",))

    def encode(text: str) -> list[int]:
        return [int(token) for token in library.encode(text, 0, 0)]

    return compare_tokenization(tokenizer, EXECUTORCH, encode=encode, is_full=is_full)
