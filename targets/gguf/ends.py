"""The tokens that begin and end a text in a GGUF file.

A file has room for three ends: ``eos``, which chat templates are given as ``eos_token``, ``eot``, the end of a turn,
and ``eom``. llama.cpp finds more of them by their names. ``bos`` is what plain text begins with where ``add_bos_token``
says so; the checkpoint's post-processor decides that.
"""

from __future__ import annotations

from collections.abc import Iterator

from qwen3_export.checkpoint.tokenizer import Tokenizer

__all__ = ["adds_bos", "adds_eos", "bos_token_id", "end_remarks", "end_tokens"]

# Qwen's own ends, which every llama.cpp knows by their names (llama-vocab.cpp, special_eog_ids).
ENDS_BY_NAME = frozenset({"<|im_end|>", "<|endoftext|>"})


def end_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """``eos``, and ``eot`` and ``eom`` where the checkpoint has ends that llama.cpp would not know otherwise."""
    generation = tokenizer.generation
    found = {"eos": generation.eos_token_ids[0]}
    if generation.turn_end_id is not None and generation.turn_end_id != found["eos"]:
        found["eot"] = generation.turn_end_id
    for token in _unknown_ends(tokenizer, found):
        free = next((name for name in ("eot", "eom") if name not in found), None)
        if free is None:
            break
        found[free] = token
    return found


def end_remarks(tokenizer: Tokenizer) -> Iterator[str]:
    """What a GGUF file cannot say of the tokens around a text."""
    for token in _unknown_ends(tokenizer, end_tokens(tokenizer)):
        yield f"a GGUF file has no room for the end token {tokenizer.decode([token])}: llama.cpp goes on after it"
    if tokenizer.front and not adds_bos(tokenizer):
        yield f"the tokenizer begins plain text with {tokenizer.decode(tokenizer.front)}, which a GGUF file cannot say"
    if tokenizer.back and not adds_eos(tokenizer):
        yield f"the tokenizer ends plain text with {tokenizer.decode(tokenizer.back)}, which a GGUF file cannot say"


def bos_token_id(tokenizer: Tokenizer) -> int | None:
    """What the tokenizer puts before plain text; if it puts nothing there, what the generation config names."""
    return tokenizer.front[0] if len(tokenizer.front) == 1 else tokenizer.generation.bos_token_id


def adds_bos(tokenizer: Tokenizer) -> bool:
    return len(tokenizer.front) == 1


def adds_eos(tokenizer: Tokenizer) -> bool:
    return tokenizer.back == tokenizer.generation.eos_token_ids[:1]


def _unknown_ends(tokenizer: Tokenizer, found: dict[str, int]) -> list[int]:
    """Ends of the checkpoint that llama.cpp would not stop at."""
    by_name = {token.id for token in tokenizer.added_tokens if token.content in ENDS_BY_NAME}
    known = {*found.values(), *by_name}
    return [token for token in tokenizer.generation.eos_token_ids if token not in known]
