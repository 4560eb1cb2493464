"""The loop over tokens: endings, room, and thoughts that are closed; over a runtime that says what it is told to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qwen3_export.errors import CheckpointError
from qwen3_export.generation.generate import Ending, Generation, Step
from qwen3_export.generation.sampling import GREEDY, Sampler
from qwen3_export.generation.stepper import ChunkedStepper
from qwen3_export.generation.thinking import Place, Thinking

END, OPEN, CLOSE = 0, 1, 2
STOP = [8, CLOSE, 9]
PROMPT = [7, 7, 7]


class Script:
    """A runtime that replies with a script, whatever it is fed; keeps what it was fed, call by call."""

    def __init__(self, reply: Sequence[int], *, positions: int = 100, chunk: int = 100) -> None:
        self.reply, self.fed, self.calls = list(reply), list[int](), list[int]()
        self.stepper = ChunkedStepper(self.append, positions=positions, chunk=chunk)

    def append(self, tokens: Sequence[int], past: int) -> np.ndarray:
        assert past == len(self.fed)
        self.fed += tokens
        self.calls.append(len(tokens))
        # One reply token for each feed that was not cut off: the script goes on after what was drawn so far.
        logits = np.zeros(16, np.float32)
        drawn = sum(1 for token in self.fed if token not in (7, 8, 9, CLOSE)) if len(self.fed) > len(PROMPT) else 0
        logits[self.reply[min(drawn, len(self.reply) - 1)]] = 1
        return logits


def generate(
    script: Script, *, budget: int | None = None, most: int = 50, is_inside: bool = False
) -> tuple[Generation, list[Step]]:
    generation = Generation(
        script.stepper,
        PROMPT,
        sampler=Sampler(GREEDY),
        thinking=Thinking((OPEN, CLOSE), budget=budget, is_inside=is_inside),
        is_end=lambda token: token == END,
        max_new_tokens=most,
        early_stop=STOP,
    )
    return generation, list(generation)


def tokens(steps: list[Step]) -> list[int]:
    return [step.token for step in steps]


def test_a_reply_ends_with_its_turn() -> None:
    script = Script([4, 5, END])
    generation, steps = generate(script)
    assert tokens(steps) == [4, 5]
    assert (generation.ending, generation.num_drawn) == (Ending.END_TOKEN, 3)
    assert script.calls == [3, 1, 1]  # each token is fed once


def test_a_reply_ends_with_the_tokens_allowed() -> None:
    script = Script([4, 5, 6, END])
    generation, steps = generate(script, most=2)
    assert tokens(steps) == [4, 5]
    assert generation.ending is Ending.LENGTH
    assert script.fed == [*PROMPT, 4]  # the last one is not run in vain


@pytest.mark.parametrize("positions", [3, 4, 5])
def test_a_reply_ends_with_the_context(positions: int) -> None:
    generation, steps = generate(Script([4, 4, 4, 4, 4, END], positions=positions))
    assert tokens(steps) == [4] * (positions - 2)  # the last token need not be fed
    assert generation.ending is Ending.CONTEXT


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_a_thought_is_closed_when_its_budget_is_spent(budget: int) -> None:
    script = Script([OPEN, 3, 4, 5, 6, 10, END])
    generation, steps = generate(script, budget=budget)
    thought = [3, 4, 5][:budget]
    assert tokens(steps)[: budget + 4] == [OPEN, *thought, *STOP]
    assert [step.is_forced for step in steps[: budget + 4]] == [False] * (budget + 1) + [True] * 3
    assert [step.place for step in steps[budget + 1 : budget + 5]] == [
        Place.THOUGHT, Place.MARK, Place.ANSWER, Place.ANSWER,
    ]  # fmt: skip
    assert generation.was_cut_short
    assert generation.num_drawn == sum(not step.is_forced for step in steps) + 1
    assert script.fed[3 : budget + 7] == [OPEN, *thought, *STOP]


def test_a_prompt_within_a_thought_is_closed_at_once() -> None:
    script = Script([5, END])
    generation, steps = generate(script, budget=0, is_inside=True)
    assert tokens(steps)[:3] == STOP
    assert script.calls[0] == len(PROMPT) + len(STOP)
    assert generation.was_cut_short


def test_a_thought_within_its_budget_is_left_alone() -> None:
    script = Script([OPEN, 3, END])
    generation, steps = generate(script, budget=2)
    assert tokens(steps) == [OPEN, 3]
    assert not generation.was_cut_short


def test_no_budget_no_limit() -> None:
    generation, steps = generate(Script([OPEN, 3, 4, 5, 6, 3, 4, 5, END]))
    assert len(steps) == 8
    assert not generation.was_cut_short


def test_closing_needs_room() -> None:
    generation, steps = generate(Script([OPEN, 3, 3, END], positions=5), budget=1)
    assert tokens(steps) == [OPEN, 3]
    assert generation.ending is Ending.CONTEXT


def test_thinking_counts_what_stands_inside() -> None:
    thinking = Thinking((OPEN, CLOSE), budget=2)
    places = [thinking.see(token) for token in (5, OPEN, 3, 4)]
    assert places == [Place.ANSWER, Place.MARK, Place.THOUGHT, Place.THOUGHT]
    assert (thinking.count, thinking.is_spent) == (2, True)
    assert thinking.see(CLOSE) is Place.MARK
    assert not thinking.is_spent  # closed by itself, with the last token that it had
    assert Thinking(None, budget=0).see(OPEN) is Place.ANSWER


def test_long_prompts_are_fed_in_chunks() -> None:
    script = Script([4, END], chunk=2)
    _, steps = generate(script)
    assert script.calls == [2, 1, 1]
    assert tokens(steps) == [4]
    with pytest.raises(ValueError, match="1 to"):
        script.stepper.feed([1] * 1000)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_told(wrong: float) -> None:
    stepper = ChunkedStepper(lambda _tokens, _past: np.array([0, wrong]), positions=9, chunk=9)
    with pytest.raises(CheckpointError, match="position 1 are not all finite"):
        stepper.feed([1, 2])
