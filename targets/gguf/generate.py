"""Generate with a GGUF file in llama.cpp and its own tokenizer, as llama-cli does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3_export.checkpoint.template import DEFAULT, ChatTemplate
from qwen3_export.errors import CheckpointError
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.speech import SAMPLING_FIELDS, Speech, mark_ids
from qwen3_export.generation.stepper import ChunkedStepper, Runtime, Stepper
from qwen3_export.targets.gguf.llama import LlamaModel, open_model, runtime_version
from qwen3_export.targets.gguf.read import split_parts
from qwen3_export.targets.gguf.target import starts_as_gguf

if TYPE_CHECKING:
    from qwen3_export.checkpoint.model import Model

__all__ = ["generate"]

# llama.cpp's default: tokens of a prompt that are computed at once.
BATCH = 512
# GGUF's names where they differ; keys are ``general.sampling.*``.
KEYS = {"temperature": "temp"}


@contextmanager
def generate(path: Path, model: Model | None, *, threads: int | None = None) -> Iterator[Opened]:
    """Open a file (of a split one, any part); ``model`` lends its template where the file has none."""
    _check_is_gguf(path)
    with open_model(split_parts(path)[0], threads=threads) as opened:
        yield Opened(runtime=_runtime(opened), speech=_speech(path, opened, model))


def _check_is_gguf(path: Path) -> None:
    """Before llama.cpp is asked to load a text file."""
    if path.is_file() and not starts_as_gguf(path):
        raise CheckpointError(f"{path}: not a GGUF file, though its name ends like one's; export it again")


def _runtime(model: LlamaModel) -> Runtime:
    @contextmanager
    def start(positions: int) -> Iterator[Stepper]:
        batch = min(BATCH, positions)
        with model.session(positions=positions, batch=batch) as session:
            yield ChunkedStepper(
                lambda tokens, past: session.append(tokens, start=past), positions=positions, chunk=batch
            )

    return Runtime(
        name=f"llama.cpp (llama-cpp-python {runtime_version()})", context_length=model.context_length, start=start
    )


def _speech(path: Path, opened: LlamaModel, model: Model | None) -> Speech:
    def token_to_id(text: str) -> int | None:
        ids = opened.tokenize(text)
        return ids[0] if len(ids) == 1 else None

    own, lent = opened.chat_template, None if model is None else model.tokenizer.template
    return Speech(
        origin=str(path),
        encode=opened.tokenize,
        encode_plain=lambda text: opened.tokenize(text, add_special=True),
        piece=opened.piece,
        is_end=opened.is_end,
        template=lent if own is None else ChatTemplate(templates={DEFAULT: own}, tokens=opened.named_tokens),
        marks=mark_ids(token_to_id),
        stated=_stated(opened),
    )


def _stated(opened: LlamaModel) -> dict[str, Any]:
    """What metadata says of sampling; numbers come as text."""
    found: dict[str, Any] = {}
    for name in SAMPLING_FIELDS:
        text = opened.metadata(f"general.sampling.{KEYS.get(name, name)}")
        if text is not None:
            found[name] = int(text) if name == "top_k" else round(float(text), 6)
    return found
