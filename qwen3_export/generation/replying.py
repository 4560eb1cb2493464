"""One reply to one prompt: from a question to tokens and, where nobody watches, to the whole text."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qwen3_export.errors import ExportError
from qwen3_export.generation.dialogue import Opening, open_dialogue, open_raw, sampling_for
from qwen3_export.generation.generate import Generation
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.sampling import Sampler, Sampling
from qwen3_export.generation.text import TextStream
from qwen3_export.generation.thinking import EARLY_STOP, OPEN, Thinking

__all__ = ["Prepared", "generation", "prepare", "reply"]

SEEDS = 1 << 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A prompt that can be run as asked: how it opens, its tokens, how the reply is drawn."""

    opening: Opening
    tokens: list[int]
    sampling: Sampling
    seed: int
    thinking_budget: int | None
    max_new_tokens: int


def prepare(
    opened: Opened,
    prompt: str,
    *,
    system: str | None = None,
    is_raw: bool = False,
    think: bool | None = None,
    thinking_budget: int | None = None,
    max_new_tokens: int = 2048,
    seed: int | None = None,
    **sampling: float | None,
) -> Prepared:
    """Write the prompt as the template has it; ExportError where it cannot be run as asked.

    ``sampling`` may have ``temperature``, ``top_k``, ``top_p`` and ``min_p``; None is the default of the mode.
    """
    speech, context = opened.speech, opened.runtime.context_length
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
    opening = open_raw(prompt) if is_raw else open_dialogue(speech, messages, think=think)
    chosen = sampling_for(opening, speech.stated, **sampling)
    if thinking_budget is not None and speech.marks is None:
        raise ExportError(f"{speech.origin}: the tokenizer has no <think> and </think>; leave `thinking_budget` out")
    tokens = (speech.encode_plain if is_raw else speech.encode)(opening.text)
    if len(tokens) > context:
        raise ExportError(f"the prompt has {len(tokens)} tokens, and the context {context}; shorten it")
    return Prepared(
        opening=opening,
        tokens=tokens,
        sampling=chosen,
        seed=secrets.randbelow(SEEDS) if seed is None else seed,
        thinking_budget=thinking_budget,
        max_new_tokens=max_new_tokens,
    )


@contextmanager
def generation(opened: Opened, prepared: Prepared) -> Iterator[Generation]:
    """The reply, step by step, in a sequence that is long enough for it."""
    speech, runtime = opened.speech, opened.runtime
    stop = speech.encode(EARLY_STOP)
    positions = len(prepared.tokens) + prepared.max_new_tokens + len(stop)
    with runtime.start(min(runtime.context_length, positions)) as stepper:
        yield Generation(
            stepper,
            prepared.tokens,
            sampler=Sampler(prepared.sampling, seed=prepared.seed),
            thinking=Thinking(speech.marks, budget=prepared.thinking_budget, is_inside=prepared.opening.is_inside),
            is_end=speech.is_end,
            max_new_tokens=prepared.max_new_tokens,
            early_stop=stop,
        )


def reply(opened: Opened, prompt: str, **asked: Any) -> str:
    """The whole reply as text; ``asked`` is what ``prepare`` takes."""
    prepared = prepare(opened, prompt, **asked)
    stream = TextStream(opened.speech.piece)
    parts = [f"{OPEN}\n"] if prepared.opening.is_inside else []
    with generation(opened, prepared) as steps:
        parts += [stream.add(step.token) for step in steps]
    return "".join([*parts, stream.end()])
