"""The token table that a GGUF file of a checkpoint should have, for the check.

The writer takes its tokens from ``checkpoint.tokenizer``. So that mistakes made there or in the writer are found, this
file shares no code with them: the tokenizers library says which tokens there are and which of them are special, and
gguf-py has the numbers of llama.cpp's token types.
"""

# V rows of the embedding

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

__all__ = ["expected_tokens", "may_be_control"]

# What llama.cpp takes for markup by its looks, as its converter does (does_token_look_special).
MARKUP = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)


def expected_tokens(folder: Path, vocab_size: int) -> tuple[list[str], list[int]]:
    """The text and the type of every token, both [V], from the tokenizer files of a checkpoint's folder.

    Special added tokens have the type CONTROL and other added tokens USER_DEFINED (some ``may_be_control``). Rows of
    the embedding that no token uses are called ``[PAD7]`` and have the type UNUSED.
    """
    from gguf import TokenType
    from tokenizers import Tokenizer

    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts: list[str | None] = [library.id_to_token(i) for i in range(vocab_size)]
    types = [TokenType.UNUSED if text is None else TokenType.NORMAL for text in texts]
    for i, token in library.get_added_tokens_decoder().items():
        types[i] = TokenType.CONTROL if token.special else TokenType.USER_DEFINED
    for i, text, is_special in _tokens_in_settings(folder / "tokenizer_config.json"):
        if texts[i] is None:
            texts[i] = text
            types[i] = TokenType.CONTROL if is_special else TokenType.USER_DEFINED
    return [f"[PAD{i}]" if text is None else text for i, text in enumerate(texts)], [int(kind) for kind in types]


def may_be_control(content: str) -> bool:
    """Whether an added token that is not special may be CONTROL all the same, as llama.cpp's converter has it."""
    return MARKUP.fullmatch(content) is not None


def _tokens_in_settings(path: Path) -> Iterator[tuple[int, str, bool]]:
    """Id, text and whether it is special, of each token that ``tokenizer_config.json`` adds."""
    if not path.exists():
        return
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens_decoder") or {}
    for i, token in added.items():
        yield int(i), token["content"], bool(token.get("special"))
