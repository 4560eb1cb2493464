"""Compare a runtime's tokenization with the checkpoint's: dialogues and prose, and every added token in odd company.

Not every runtime knows all that a tokenizer.json can say: an added token that takes the spaces beside it (``lstrip``,
``rstrip``), that only stands alone (``single_word``), that is looked for in composed text; and that text is composed at
all (NFC). Differences that come from those are told by name, as notes: the artifact is what it can be. Any other
difference is a fault.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from qwen3_export.checkpoint.tokenizer import AddedToken, Tokenizer
from qwen3_export.parity.findings import Observed
from qwen3_export.parity.prompts import tokenization_text

__all__ = ["EXECUTORCH", "GENAI", "LLAMA_CPP", "TRANSFORMERS_JS", "Limits", "compare_tokenization", "token_remarks"]

Encode = Callable[[str], list[int]]

SURROUNDINGS = ("{0}", "a{0}b", " {0} ", "a  {0}  b", "\n{0}\n\n", "1{0}2", "{0}{0}", "a\t{0}\tb", "ß{0}é", ".{0}?")
DECOMPOSED = unicodedata.normalize("NFD", "Café à la crème, Ünder Ångström; 한국어, が ぱ, ñandú, Việt")
PLAIN = "Once upon a time"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a runtime's tokenizer does not do; ``flags`` of added tokens, and what it does instead of each."""

    runtime: str
    flags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    composes: bool = True


LLAMA_CPP = Limits(
    runtime="llama.cpp",
    flags={
        "lstrip": "keeps the spaces before it",
        "rstrip": "keeps the spaces after it",
        "single_word": "finds it inside words too",
        "normalized": "finds it only as it is spelled",
    },
    composes=False,
)


GENAI = Limits(
    runtime="onnxruntime-genai",
    flags={
        "lstrip": "keeps the spaces before it",
        "single_word": "finds it inside words too",
        "normalized": "finds it only as it is spelled",
    },
    composes=False,
)


TRANSFORMERS_JS = Limits(runtime="transformers.js", flags={"single_word": "finds it inside words too"})
EXECUTORCH = Limits(runtime="ExecuTorch", flags=LLAMA_CPP.flags, composes=False)


def token_remarks(tokenizer: Tokenizer, limits: Limits) -> Iterator[str]:
    """Added tokens that the runtime treats otherwise than the checkpoint's tokenizer, with their names."""
    for token in tokenizer.added_tokens:
        for flag in token.flags:
            if flag in limits.flags:
                yield f"the added token {token.content!r} has {flag}: {limits.runtime} {limits.flags[flag]}"


def compare_tokenization(
    tokenizer: Tokenizer,
    limits: Limits,
    *,
    encode: Encode,
    encode_plain: Encode | None = None,
    is_full: bool = False,
) -> Observed:
    """Compare on all evaluation texts and on every added token; a full comparison has decomposed text as well.

    ``encode_plain`` puts around a plain text what the runtime thinks belongs there.
    """
    flagged = [token for token in tokenizer.added_tokens if any(flag in limits.flags for flag in token.flags)]
    problems = list(_texts_that_differ(tokenizer, encode, limits))
    wrong = {token.content: _differing(tokenizer, token, encode) for token in tokenizer.added_tokens}
    problems += [
        f"{limits.runtime} tokenizes {text!r} otherwise than the checkpoint: {found} instead of {expected}"
        for token in tokenizer.added_tokens
        if token not in flagged
        for text, found, expected in wrong[token.content][:1]
    ]
    if encode_plain is not None and encode_plain(PLAIN) != tokenizer.encode_plain(PLAIN):
        problems.append(
            f"{limits.runtime} begins or ends plain text otherwise than the checkpoint: {encode_plain(PLAIN)} for "
            f"{PLAIN!r} instead of {tokenizer.encode_plain(PLAIN)}"
        )
    notes = [f"{remark}, so that it tokenizes otherwise" for remark in token_remarks(tokenizer, limits)]
    if is_full and tokenizer.is_nfc and encode(DECOMPOSED) != tokenizer.encode(DECOMPOSED):
        told = f"{limits.runtime} does not compose characters (NFC) as the tokenizer does: give it composed text"
        (problems if limits.composes else notes).append(told)
    return Observed(problems=tuple(problems), notes=tuple(notes))


def _texts_that_differ(tokenizer: Tokenizer, encode: Encode, limits: Limits) -> Iterator[str]:
    text = tokenization_text(tokenizer)
    expected, found = tokenizer.encode(text), encode(text)
    if found != expected:
        first = next((i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(expected))
        around = tokenizer.decode(expected[max(0, first - 3) : first + 3])
        yield f"{limits.runtime} tokenizes otherwise than the checkpoint, first at token {first}, near {around!r}"


def _differing(tokenizer: Tokenizer, token: AddedToken, encode: Encode) -> list[tuple[str, list[int], list[int]]]:
    """Text, the runtime's tokens and the checkpoint's, where they differ."""
    found = ((text, encode(text), tokenizer.encode(text)) for text in _texts_around(token, tokenizer.added_tokens))
    return [(text, mine, theirs) for text, mine, theirs in found if mine != theirs]


def _texts_around(token: AddedToken, others: Sequence[AddedToken]) -> Iterator[str]:
    content = token.content
    yield from (form.format(content) for form in SURROUNDINGS)
    yield f"{content[:-1]} {content[1:]}"
    yield f"{content[: len(content) // 2]}{content}"
    # Tokens that overlap with it: "ab" and "bc" in "abc".
    for other in others:
        for size in range(1, min(len(content), len(other.content))):
            if content.endswith(other.content[:size]):
                yield content + other.content[size:]
