"""What onnxruntime-genai does before the graph: its tokenizer and its template engine, beside the checkpoint's."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen3_export.checkpoint.tokenizer import Tokenizer
from qwen3_export.errors import UnsupportedModelError
from qwen3_export.parity.dialogues import DIALOGUES, Dialogue
from qwen3_export.parity.findings import Observed
from qwen3_export.parity.tokenization import GENAI, compare_tokenization

__all__ = ["is_installed", "observe_genai", "render"]

# What stands in a note; the rest is counted.
NAMED = 3


def is_installed() -> bool:
    return importlib.util.find_spec("onnxruntime_genai") is not None


def observe_genai(folder: Path, tokenizer: Tokenizer, *, is_full: bool) -> Observed:
    """Compare tokens and rendered dialogues; the graph is not loaded for it."""
    import onnxruntime_genai

    try:
        theirs = onnxruntime_genai.Tokenizer(str(folder))
    except Exception as error:  # the library raises what its C++ threw
        return Observed(problems=(f"onnxruntime-genai cannot read the tokenizer: {error}",))
    found = compare_tokenization(
        tokenizer, GENAI, encode=lambda text: [int(token) for token in theirs.encode(text)], is_full=is_full
    )
    return Observed(problems=found.problems, notes=(*found.notes, *_dialogues(theirs, tokenizer)))


def render(tokenizer: Any, dialogue: Dialogue) -> str | None:
    """A dialogue as onnxruntime-genai renders it with the folder's template; None where it refuses it."""
    switch = {} if dialogue.enable_thinking is None else {"enable_thinking": dialogue.enable_thinking}
    given = {} if dialogue.tools is None else {"tools": json.dumps(dialogue.tools)}
    try:
        tokenizer.update_options(chat_template_kwargs=json.dumps(switch))
        text: str = tokenizer.apply_chat_template(
            json.dumps(dialogue.messages), add_generation_prompt=dialogue.add_generation_prompt, **given
        )
    except Exception:  # the library raises what its C++ threw
        return None
    return text


def _dialogues(theirs: Any, tokenizer: Tokenizer) -> Iterator[str]:
    """A note on the dialogues that the engine renders otherwise; what transformers refuses does not count."""
    if tokenizer.template is None:
        return
    wrong = []
    for dialogue in DIALOGUES:
        try:
            expected = dialogue.rendered(tokenizer.template)
        except UnsupportedModelError:
            continue
        if render(theirs, dialogue) != expected:
            wrong.append(dialogue.name)
    if wrong:
        more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        yield (
            "onnxruntime-genai's engine renders the chat template otherwise than transformers "
            f"({'; '.join(wrong[:NAMED])}{more}): write these prompts in your app"
        )
