"""Prepare a reply: write the prompt with the checkpoint's template, choose thinking or not, choose the sampling.

Whether a template can think is found by rendering it, not by searching it for words. A template that gives another
prompt with ``enable_thinking=False`` has a switch (Qwen3). A template that gives the same prompt either leaves
``<think>`` open at the end (the Thinking releases) or does not think at all (the Instruct releases).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3_export.errors import ExportError
from qwen3_export.generation.sampling import GREEDY, NON_THINKING, THINKING, Sampling
from qwen3_export.generation.speech import SAMPLING_FIELDS, Speech
from qwen3_export.generation.thinking import OPEN

__all__ = ["Opening", "open_dialogue", "open_raw", "sampling_for"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """The start of a reply: ``text`` is the prompt, ``is_inside`` is True if it ends within a thought.

    ``thinks`` is None for plain text, which has no modes; ``has_switch`` is True if the template can think or not.
    """

    text: str
    thinks: bool | None
    has_switch: bool = False
    is_inside: bool = False


def open_raw(text: str) -> Opening:
    """Continue plain text."""
    return Opening(text=text, thinks=None)


def open_dialogue(speech: Speech, messages: Sequence[Mapping[str, Any]], *, think: bool | None = None) -> Opening:
    """The prompt for a reply to ``messages``. By default the model thinks if its template can.

    Raises ExportError without a template, and for a mode that the template does not have; UnsupportedModelError if the
    template does not accept the messages.
    """
    if speech.template is None:
        raise ExportError(
            f"{speech.origin}: has no chat template; name the checkpoint with `model`, or give `raw` for plain text"
        )
    template = speech.template
    texts = {on: template.render(messages, add_generation_prompt=True, enable_thinking=on) for on in (True, False)}
    has_switch, is_left_open = texts[True] != texts[False], texts[True].rstrip().endswith(OPEN)
    thinks = has_switch or is_left_open
    if think is not None and think != thinks and not has_switch:
        does = "always thinks; leave `think` out" if thinks else "does not think; leave `think` out"
        raise ExportError(f"{speech.origin}: by its chat template the model {does}")
    thinks = thinks if think is None else think
    text = texts[thinks]
    return Opening(text=text, thinks=thinks, has_switch=has_switch, is_inside=text.rstrip().endswith(OPEN))


def sampling_for(opening: Opening, stated: Mapping[str, Any], **chosen: float | None) -> Sampling:
    """Sampling from the user's choices, then the makers' defaults for the mode, then the checkpoint's settings.

    A checkpoint with a switch has one set of numbers (in generation_config.json) for two modes, so the defaults of the
    mode are used instead. With only one mode, the checkpoint's numbers were meant for it and come first. Plain text is
    greedy if the checkpoint states nothing, as in transformers.
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
