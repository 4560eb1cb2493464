"""The checkpoint's tokenizer and chat template: text to tokens, and what targets write of them.

The ``tokenizers`` library encodes. What targets need beside it (the byte-level BPE vocabulary, its merges, which added
tokens are special, the ids that end a text, the chat template) is read from ``tokenizer.json``,
``tokenizer_config.json``, ``generation_config.json`` and ``chat_template.jinja``. Whether it is Qwen's tokenizer is
decided by its split pattern, and not by a hash: a fine-tune with added tokens still splits as Qwen3 does.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from qwen3_export.checkpoint.template import (
    ADDITIONAL_TEMPLATES,
    TEMPLATE_FILE,
    ChatTemplate,
    read_template,
    token_content,
)
from qwen3_export.checkpoint.turns import turn_end
from qwen3_export.errors import CheckpointError, UnsupportedModelError
from qwen3_export.files.json_file import Fields, read_json
from qwen3_export.files.shown import shown

if TYPE_CHECKING:
    from tokenizers import Tokenizer as FastTokenizer

    from qwen3_export.config import Qwen3Config

__all__ = [
    "ADDED_TOKEN_FLAGS",
    "TOKENIZER_FILES",
    "AddedToken",
    "GenerationDefaults",
    "Tokenizer",
    "add_missing_tokens",
    "load_tokenizer",
    "read_fast_tokenizer",
    "tokens_in_settings",
]

# What an app needs beside the weights, and what is fetched from the hub.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    TEMPLATE_FILE,
    f"{ADDITIONAL_TEMPLATES}/*.jinja",
)

ADDED_TOKEN_FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")

# The split pattern of Qwen2 and Qwen3 (tokenizer.json of every release).
QWEN_SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedToken:
    """A token outside the BPE vocabulary; ``special`` ones are never part of the visible text.

    The other flags are those of the tokenizers library.
    """

    id: int
    content: str
    special: bool
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """What makes it match otherwise than as its plain text: ``lstrip`` takes the spaces before it, and so on.

        ``normalized`` only matters for a content that the normalizer (NFC) would change.
        """
        names = [name for name in ("lstrip", "rstrip", "single_word") if getattr(self, name)]
        is_changed = self.normalized and unicodedata.normalize("NFC", self.content) != self.content
        return (*names, *(["normalized"] if is_changed else []))


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What ``generation_config.json`` recommends; None where it is silent.

    ``eos_token_ids`` has the tokenizer's own end first, and ``turn_end_id`` among them: what the chat template writes
    after a turn.
    """

    eos_token_ids: tuple[int, ...]
    turn_end_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenizer:
    """A checkpoint's tokenizer.

    ``vocabulary`` maps BPE tokens (in byte-level letters) to ids, without the added tokens; ``merges`` are pairs of
    tokens, the first to be merged first; ``is_nfc`` says that text is brought to Unicode's form NFC first. ``front``
    and ``back`` are the tokens that it puts around plain text (a BOS, an EOS). ``notes`` are sentences on what its
    files leave out.
    """

    folder: Path
    vocabulary: Mapping[str, int]
    merges: Sequence[tuple[str, str]]
    added_tokens: Sequence[AddedToken]
    template: ChatTemplate | None
    generation: GenerationDefaults
    is_nfc: bool
    front: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()
    _fast: FastTokenizer = field(repr=False, compare=False)

    @property
    def chat_template(self) -> str | None:
        """The text of the default template."""
        return None if self.template is None else self.template.text

    @property
    def bos_token_id(self) -> int:
        """What plain text begins with, for consumers that want such a token in any case."""
        stated = self.front[0] if self.front else self.generation.bos_token_id
        ends = [token for token in self.generation.eos_token_ids if token != self.generation.turn_end_id]
        return stated if stated is not None else (ends or self.generation.eos_token_ids)[-1]

    @property
    def num_tokens(self) -> int:
        """How many ids the tokenizer may produce: one more than the largest."""
        largest = max(self.vocabulary.values(), default=-1)
        return 1 + max(largest, *(token.id for token in self.added_tokens), -1)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; markup such as ``<|im_start|>`` becomes its own token, and no BOS is added."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of plain text, with what the tokenizer puts around it."""
        return list(self._fast.encode(text, add_special_tokens=True).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        return str(self._fast.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        enable_thinking: bool | None = None,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """The dialogue as the checkpoint's own chat template writes it, and transformers would.

        Raises UnsupportedModelError if there is no template, or it does not accept these messages.
        """
        if self.template is None:
            raise UnsupportedModelError(f"{self.folder}: has no chat template; give plain text")
        variables = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        return self.template.render(
            messages, tools=tools, documents=documents, add_generation_prompt=add_generation_prompt, **variables
        )


def load_tokenizer(folder: Path, config: Qwen3Config) -> Tokenizer:
    """Read the tokenizer of a checkpoint folder.

    Raises CheckpointError if files are missing, damaged, or hold more tokens than the embedding has rows;
    UnsupportedModelError if it is no byte-level BPE with Qwen's split pattern.
    """
    path = folder / "tokenizer.json"
    document = read_json(path)
    _check_is_qwen_bpe(document, path)
    fast = read_fast_tokenizer(path)
    settings_path = folder / "tokenizer_config.json"
    settings = read_json(settings_path) if settings_path.exists() else {}
    added = _added_tokens(Fields(document, path), Fields(settings, settings_path))
    add_missing_tokens(fast, added)
    template = read_template(folder, settings)
    generation = _generation_defaults(folder, settings, fast)
    end = None if template is None else turn_end(template, {token.content: token.special for token in added})
    generation, notes = _with_turn_end(generation, end, None if end is None else fast.token_to_id(end))
    front, back = _around(fast)
    tokenizer = Tokenizer(
        folder=folder,
        vocabulary=_vocabulary(document["model"], path),
        merges=_merges(document["model"], path),
        added_tokens=added,
        template=template,
        generation=generation,
        is_nfc=_is_nfc(document.get("normalizer")),
        front=front,
        back=back,
        notes=notes,
        _fast=fast,
    )
    _check_fits(tokenizer, config)
    return tokenizer


def read_fast_tokenizer(path: Path) -> FastTokenizer:
    """``tokenizer.json`` in the tokenizers library. Raises CheckpointError for what the library does not read."""
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_file(str(path))
    except BaseException as error:
        # The library raises plain Exception, and for some damage its panics, which are no Exception.
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise CheckpointError(f"{path}: the tokenizers library cannot read it ({error})") from error
        raise


def _check_is_qwen_bpe(document: Mapping[str, Any], path: Path) -> None:
    model = document.get("model")
    if not isinstance(model, Mapping) or model.get("type", "BPE") != "BPE" or "vocab" not in model:
        raise UnsupportedModelError(f"{path}: not a BPE tokenizer; Qwen3's is")
    if QWEN_SPLIT_PATTERN not in _patterns(document.get("pre_tokenizer")):
        raise UnsupportedModelError(
            f"{path}: its pre-tokenizer does not split as Qwen3's does; runtimes would tokenize differently"
        )


def _patterns(description: object) -> list[str]:
    """Every regex in a pre-tokenizer's description, however deep."""
    found, waiting = [], [description]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Mapping):
            found += [node["Regex"]] if isinstance(node.get("Regex"), str) else []
            waiting += node.values()
        elif isinstance(node, list):
            waiting += node
    return found


def _is_nfc(normalizer: object) -> bool:
    return isinstance(normalizer, Mapping) and normalizer.get("type") == "NFC"


def _vocabulary(model: Mapping[str, Any], path: Path) -> Mapping[str, int]:
    vocabulary = Fields(model, path).object("vocab") or {}
    if all(_is_id(value) for value in vocabulary.values()):
        return vocabulary
    raise CheckpointError(f"{path}: its vocabulary gives tokens ids that are no numbers; download it again")


def _merges(model: Mapping[str, Any], path: Path) -> list[tuple[str, str]]:
    """Older files write a merge as "a b", newer ones as ["a", "b"]."""
    merges = Fields(model, path).items("merges") or []
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]
    if all(isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair) for pair in pairs):
        return [(left, right) for left, right in pairs]
    raise CheckpointError(f"{path}: its merges are no pairs of tokens; download it again")


def _added_tokens(document: Fields, settings: Fields) -> list[AddedToken]:
    """Added tokens by id, of tokenizer.json and of tokenizer_config.json (where some fine-tunes add theirs)."""
    found: dict[int, AddedToken] = {}
    for entry in document.objects("added_tokens"):
        token = _added_token(entry.get("id"), entry, document)
        found[token.id] = token
    for token in tokens_in_settings(settings):
        found.setdefault(token.id, token)
    return [found[key] for key in sorted(found)]


def tokens_in_settings(settings: Fields) -> list[AddedToken]:
    """The added tokens of tokenizer_config.json. Raises CheckpointError for a damaged one."""
    found = []
    for key, entry in (settings.object("added_tokens_decoder") or {}).items():
        token_id = int(key) if key.isascii() and key.isdigit() and len(key) < 10 else None
        found.append(_added_token(token_id, entry, settings))
    return found


def _added_token(token_id: object, entry: object, file: Fields) -> AddedToken:
    content = entry.get("content") if isinstance(entry, Mapping) else None
    if not (isinstance(entry, Mapping) and _is_id(token_id) and isinstance(content, str)):
        raise CheckpointError(f"{file.path}: its added token {shown(token_id)} is damaged; download it again")
    return AddedToken(id=token_id, content=content, **{name: bool(entry.get(name)) for name in ADDED_TOKEN_FLAGS})


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


def add_missing_tokens(fast: FastTokenizer, tokens: Sequence[AddedToken]) -> None:
    """Give the library the tokens that only tokenizer_config.json has, as transformers does when it loads them."""
    from tokenizers import AddedToken as LibraryToken

    known = fast.get_added_tokens_decoder()
    for token in tokens:
        if token.id not in known:
            flags = {name: getattr(token, name) for name in ADDED_TOKEN_FLAGS}
            fast.add_tokens([LibraryToken(token.content, **flags)])


def _around(fast: FastTokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens before and after a plain text; its post-processor decides, whatever add_bos_token says."""
    inside = fast.encode("a", add_special_tokens=False).ids
    whole = fast.encode("a", add_special_tokens=True).ids
    start = next((i for i in range(len(whole)) if whole[i : i + len(inside)] == inside), 0)
    return tuple(whole[:start]), tuple(whole[start + len(inside) :])


def _generation_defaults(folder: Path, settings: Mapping[str, Any], fast: FastTokenizer) -> GenerationDefaults:
    path, config_path = folder / "generation_config.json", folder / "config.json"
    stated = Fields(read_json(path) if path.exists() else {}, path)
    model = Fields(read_json(config_path), config_path)
    ids = stated.integers("eos_token_id") if stated.has("eos_token_id") else model.integers("eos_token_id")
    # The end of a turn comes first: targets with room for one id write that.
    end_of_turn = fast.token_to_id(token_content(settings.get("eos_token")) or "")
    if end_of_turn is not None:
        ids = [end_of_turn, *(token for token in ids if token != end_of_turn)]
    if not ids:
        raise CheckpointError(f"{folder}: no file names an eos_token_id; add it to generation_config.json")
    pad = fast.token_to_id(token_content(settings.get("pad_token")) or "")
    return GenerationDefaults(
        eos_token_ids=tuple(ids),
        bos_token_id=(stated if stated.has("bos_token_id") else model).integer("bos_token_id"),
        pad_token_id=stated.integer("pad_token_id") if stated.has("pad_token_id") else pad,
        do_sample=stated.boolean("do_sample"),
        temperature=stated.number("temperature"),
        top_k=stated.integer("top_k"),
        top_p=stated.number("top_p"),
        min_p=stated.number("min_p"),
    )


def _with_turn_end(
    generation: GenerationDefaults, content: str | None, token: int | None
) -> tuple[GenerationDefaults, tuple[str, ...]]:
    """The defaults with the token after a turn among the ends, and a note where no file has it there."""
    if token is None or token in generation.eos_token_ids:
        return replace(generation, turn_end_id=token), ()
    told = f"the chat template ends turns with {content}, which no file names as an end; it is added to the end tokens"
    return replace(generation, turn_end_id=token, eos_token_ids=(*generation.eos_token_ids, token)), (told,)


def _check_fits(tokenizer: Tokenizer, config: Qwen3Config) -> None:
    if tokenizer.num_tokens > config.vocab_size:
        raise CheckpointError(
            f"{tokenizer.folder}: the tokenizer has ids up to {tokenizer.num_tokens - 1}, the embedding only "
            f"{config.vocab_size} rows; tokenizer and weights are not of the same model"
        )
    generation = tokenizer.generation
    stated: list[tuple[str, int | None]] = [("eos_token_id", token) for token in generation.eos_token_ids]
    stated += [("bos_token_id", generation.bos_token_id), ("pad_token_id", generation.pad_token_id)]
    for name, token in stated:
        if token is not None and not 0 <= token < config.vocab_size:
            raise CheckpointError(
                f"{tokenizer.folder}: {name} {shown(token)} is beyond the vocabulary of {config.vocab_size}; correct "
                "generation_config.json"
            )
