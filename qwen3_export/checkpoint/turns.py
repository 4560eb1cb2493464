"""The token that ends a turn, as the chat template writes it.

A model that was tuned for dialogues on a Base release often keeps the Base release's ``eos_token_id``, while its
template ends turns with another token. Where nothing stops at that token, the model talks on in the user's name. So the
template is asked: a short dialogue is rendered, and the token after the assistant's words is the end of a turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qwen3_export.checkpoint.template import ChatTemplate
from qwen3_export.errors import UnsupportedModelError

__all__ = ["turn_end"]

QUESTION, ANSWER, MORE = "Blackbird", "Nightingale", "Swallow"
ASKED = {"role": "user", "content": QUESTION}
ANSWERED = {"role": "assistant", "content": ANSWER}


def turn_end(template: ChatTemplate, added_tokens: Mapping[str, bool]) -> str | None:
    """The added token that the template writes after an assistant's words; None where it writes none.

    ``added_tokens`` has the content of every added token, and whether it is special.
    """
    after = _after_answer(template, [ASKED, ANSWERED])
    found = None if after is None else _end_in(after[1], added_tokens)
    if found is not None:
        return found
    # Some templates end a turn only where another one follows. What opens a turn is no end.
    after = _after_answer(template, [ASKED, ANSWERED, {"role": "user", "content": MORE}])
    if after is None:
        return None
    before, rest = after
    found = _end_in(rest, added_tokens)
    return None if found is None or found in before.partition(QUESTION)[0] else found


def _after_answer(template: ChatTemplate, messages: Sequence[Mapping[str, str]]) -> tuple[str, str] | None:
    """The text before and after the assistant's words."""
    try:
        text = template.render(messages)
    except UnsupportedModelError:  # it wants other messages
        return None
    before, found, after = text.rpartition(ANSWER)
    return (before, after) if found else None


def _end_in(text: str, added_tokens: Mapping[str, bool]) -> str | None:
    """The first special token of those that follow at once; of tokens that are not special, the last."""
    run: list[str] = []
    by_length = sorted(added_tokens, key=len, reverse=True)
    while (token := next((token for token in by_length if text.lstrip().startswith(token)), None)) is not None:
        run.append(token)
        text = text.lstrip().removeprefix(token)
        if text[:1].isspace():
            break
    special = [token for token in run if added_tokens[token]]
    return next(iter(special or reversed(run)), None)
