"""How a reply begins: the prompt as the checkpoint's template writes it, whether it will think, how it is sampled.

A template is asked rather than searched for words: one that writes another prompt when told ``enable_thinking=False``
has a switch (Qwen3); one that does not either leaves a ``<think>`` open at the end of every prompt (the Thinking
releases) or does not think at all (the Instruct releases).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_export.checkpoint.tokenizer import render_template
from qwen3_export.errors import ExportError
from qwen3_export.generation.sampling import GREEDY, NON_THINKING, THINKING, Sampling
from qwen3_export.generation.speech import SAMPLING_FIELDS, Speech
from qwen3_export.generation.thinking import OPEN

__all__ = ["Opening", "open_dialogue", "open_raw", "sampling_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """``text`` is fed as it is; ``is_inside`` says that it ends within a thought.

    ``thinks`` is None for plain text, where there are no modes; ``has_switch``: the template can do both.
    """

    text: str
    thinks: bool | None
    has_switch: bool = False
    is_inside: bool = False


def open_raw(text: str) -> Opening:
    """Plain text, to be continued."""
    return Opening(text=text, thinks=None)


def open_dialogue(speech: Speech, messages: Sequence[Mapping[str, Any]], *, think: bool | None = None) -> Opening:
    """The prompt for a reply to ``messages``; thinking, unless told otherwise, where the template has it.

    Raises ExportError without a template, and for a mode that it does not have; UnsupportedModelError where it does not
    accept the messages.
    """
    if speech.template is None:
        raise ExportError(
            f"{speech.origin}: has no chat template; name the checkpoint with --model, or give --raw for plain text"
        )
    asked = {"messages": list(messages), "add_generation_prompt": True}
    texts = {on: render_template(speech.template, {**asked, "enable_thinking": on}) for on in (True, False)}
    has_switch, is_left_open = texts[True] != texts[False], texts[True].rstrip().endswith(OPEN)
    thinks = has_switch or is_left_open
    if think is not None and think != thinks and not has_switch:
        does = "always thinks; leave --no-think away" if thinks else "does not think; leave --think away"
        raise ExportError(f"{speech.origin}: by its chat template the model {does}")
    thinks = thinks if think is None else think
    text = texts[thinks]
    return Opening(text=text, thinks=thinks, has_switch=has_switch, is_inside=text.rstrip().endswith(OPEN))


def sampling_for(opening: Opening, stated: Mapping[str, Any], **chosen: float | None) -> Sampling:
    """What the user has chosen; else the makers' defaults for the mode; else what the checkpoint states.

    A checkpoint with a switch states one set of numbers (in generation_config.json) for two modes: there, the modes'
    own defaults hold. Where there is one mode, what is stated was stated for it and comes first. Plain text is greedy
    where nothing is stated, as in transformers.
    """
    base, used = THINKING if opening.thinks else NON_THINKING, {} if opening.has_switch else stated
    if opening.thinks is None:
        base = Sampling(temperature=1.0) if stated else GREEDY
    if used.get("do_sample") is False:
        base, used = GREEDY, {}
    values = {name: getattr(base, name) for name in SAMPLING_FIELDS}
    values |= {name: used[name] for name in SAMPLING_FIELDS if name in used}
    values |= {name: value for name, value in chosen.items() if value is not None}
    return Sampling(**values)
