"""The parts of a tokenizer that generation needs: text to tokens and back, the end of a turn, the chat template.

A folder with ``tokenizer.json`` (a checkpoint, or an export for an app) uses its own files, so an artifact runs with
what an app would find beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from qwen3_export.checkpoint.template import ChatTemplate, read_template, token_content
from qwen3_export.checkpoint.tokenizer import add_missing_tokens, read_fast_tokenizer, tokens_in_settings
from qwen3_export.errors import CheckpointError, ExportError
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.generation.text import letter_bytes
from qwen3_export.generation.thinking import CLOSE, OPEN

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

    from qwen3_export.checkpoint.model import Model

__all__ = ["SAMPLING_FIELDS", "Speech", "artifact_speech", "folder_speech", "mark_ids"]

TOKENIZER = "tokenizer.json"
SAMPLING_FIELDS = ("temperature", "top_k", "top_p", "min_p")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speech:
    """A tokenizer as generation sees it; ``origin`` says where it comes from.

    ``encode`` is for what a template has written, ``encode_plain`` for plain text, around which a tokenizer may put
    tokens of its own (a BOS). ``piece`` gives the bytes of a token (none for markup that is never shown). ``marks`` are
    the ids of ``<think>`` and ``</think>``. ``stated`` has the checkpoint's sampling settings: ``do_sample`` and
    SAMPLING_FIELDS, if present.
    """

    origin: str
    encode: Callable[[str], list[int]]
    encode_plain: Callable[[str], list[int]]
    piece: Callable[[int], bytes]
    is_end: Callable[[int], bool]
    template: ChatTemplate | None
    marks: tuple[int, int] | None
    stated: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def artifact_speech(folder: Path, model: Model | None, *, end_ids: Iterable[int] = ()) -> Speech:
    """The folder's own tokenizer and template; if it has none, those of ``model``."""
    own = folder_speech(folder, end_ids=end_ids) if (folder / TOKENIZER).exists() else None
    if own is not None and (own.template is not None or model is None):
        return own
    if model is None:
        raise ExportError(f"{folder}: has no {TOKENIZER}; use `model` to name the checkpoint it was made from")
    checkpoint = folder_speech(model.folder, end_ids=[*end_ids, *model.tokenizer.generation.eos_token_ids])
    return checkpoint if own is None else replace(own, template=checkpoint.template)


def folder_speech(folder: Path, *, end_ids: Iterable[int] = ()) -> Speech:
    """The tokenizer of a folder; a turn also ends at ``end_ids``.

    Raises CheckpointError for files that cannot be read, and if no file says which token ends a turn.
    """
    fast = read_fast_tokenizer(folder / TOKENIZER)
    settings, generation, genai, config = (
        _read_if_there(folder / name)
        for name in ("tokenizer_config.json", "generation_config.json", "genai_config.json", "config.json")
    )
    add_missing_tokens(fast, tokens_in_settings(Fields(settings, folder / "tokenizer_config.json")))
    genai_fields = Fields(genai, folder / "genai_config.json")
    sources = (generation, genai_fields.object("model") or {}, config)
    stated_ends = (source.get("eos_token_id") for source in sources)
    ends = {*end_ids, *(token for stated in stated_ends for token in _ids(stated)), *_turn_end(fast, settings)}
    if not ends:
        raise CheckpointError(f"{folder}: no file says which token ends a turn; add eos_token_id to config.json")
    sampling = generation or genai_fields.object("search") or {}
    fields = Fields(sampling, folder / ("generation_config.json" if generation else "genai_config.json"))
    stated = {"do_sample": fields.boolean("do_sample"), **{name: fields.number(name) for name in SAMPLING_FIELDS}}
    stated["top_k"] = fields.integer("top_k")
    return Speech(
        origin=str(folder),
        encode=lambda text: list(fast.encode(text, add_special_tokens=False).ids),
        encode_plain=lambda text: list(fast.encode(text, add_special_tokens=True).ids),
        piece=_pieces(fast),
        is_end=ends.__contains__,
        template=read_template(folder, settings),
        marks=mark_ids(fast.token_to_id),
        stated={name: value for name, value in stated.items() if value is not None},
    )


def mark_ids(token_to_id: Callable[[str], int | None]) -> tuple[int, int] | None:
    """The ids of ``<think>`` and ``</think>``, or None unless both are tokens."""
    found = token_to_id(OPEN), token_to_id(CLOSE)
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _pieces(fast: FastTokenizer) -> Callable[[int], bytes]:
    """Bytes of a token: an added token's content (none for a special one), else the bytes of its letters."""
    added = {
        i: b"" if token.special else token.content.encode() for i, token in fast.get_added_tokens_decoder().items()
    }
    letters = letter_bytes()

    @cache
    def piece(token: int) -> bytes:
        if token in added:
            return added[token]
        text = fast.id_to_token(token) or ""  # embedding rows beyond the vocabulary are padding
        return b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in text)

    return piece


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _ids(stated: object) -> Iterator[int]:
    """``eos_token_id`` is a number or a list of numbers."""
    values = stated if isinstance(stated, list) else [stated]
    yield from (int(value) for value in values if isinstance(value, int))


def _turn_end(fast: FastTokenizer, settings: Mapping[str, Any]) -> Iterator[int]:
    """The token that tokenizer_config.json calls eos, as a string or as an object with its content."""
    content = token_content(settings.get("eos_token"))
    found = None if content is None else fast.token_to_id(content)
    if found is not None:
        yield found
