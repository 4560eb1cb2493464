"""Measure the demo model's accuracy on what it was taught, in fp32 and as exported, with a paired test.

    python benchmarks/taught_questions.py [--count 400] [--seed 0] [--mode both|thinking|plain] [--json F] \\
        demo-q8_0.gguf demo-onnx-int4 …

Makes different questions of the kinds that qwen3_export/data/demo/README.md lists, asks them greedily, with and without
thinking, in the fp32 reference and in each artifact's own runtime, and reads the answers. A question is asked once per
mode, and each mode is tested separately: asked again, a question would get nearly the same answer, and the test would
wrongly count it as more evidence.

The test is McNemar's exact test. It takes the questions that only one of the two answered right, and asks whether
fp32's share of them is further from one half than chance explains. Below about 0.05, the export's accuracy differs from
fp32's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from qwen3_export.checkpoint.model import load
from qwen3_export.generation.dialogue import open_dialogue
from qwen3_export.generation.generate import Generation
from qwen3_export.generation.opened import Opened
from qwen3_export.generation.reference import open_checkpoint
from qwen3_export.generation.sampling import GREEDY, Sampler
from qwen3_export.generation.text import TextStream
from qwen3_export.generation.thinking import Place, Thinking
from qwen3_export.targets.registry import open_artifact

CAPITALS = {
    "Canada": "Ottawa", "China": "Beijing", "Cuba": "Havana", "Egypt": "Cairo", "France": "Paris", "Germany": "Berlin",
    "Greece": "Athens", "India": "New Delhi", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo",
    "Peru": "Lima", "Poland": "Warsaw", "Russia": "Moscow", "Spain": "Madrid",
}  # fmt: skip
OPPOSITES = {
    "big": "small", "day": "night", "early": "late", "fast": "slow", "full": "empty", "hard": "soft", "high": "low",
    "hot": "cold", "left": "right", "old": "new", "open": "closed", "rich": "poor", "up": "down", "wet": "dry",
}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
WORDS = (
    "book", "bread", "cat", "cloud", "dog", "green", "horse", "house", "light", "night", "river", "stone", "sun",
    "table", "tree", "water",
)  # fmt: skip
LARGEST_SUMMAND, LARGEST_NUMBER = 49, 98

MODES = {"thinking": True, "plain": False}
MOST_TOKENS = 96  # three times the length of a right reply
REFERENCE = "fp32"


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; ``expected`` is what ``read`` returns for a right answer."""

    kind: str
    text: str
    expected: object


@dataclass(frozen=True, kw_only=True)
class Result:
    """The replies of one runtime in each mode."""

    name: str
    runtime: str
    seconds: float
    replies: Mapping[str, Sequence[str]]
    is_right: Mapping[str, Sequence[bool]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """The scores of a runtime in each mode, out of ``asked`` questions per mode.

    ``lost`` are questions that only fp32 answered right, ``won`` those that only the artifact did. ``same_replies`` is
    the share of whole replies equal to fp32's, ``accuracy_by_kind`` the accuracy of both modes together.
    """

    name: str
    runtime: str
    asked: int
    accuracy: Mapping[str, float]
    lost: Mapping[str, int]
    won: Mapping[str, int]
    p_value: Mapping[str, float]
    same_replies: float
    accuracy_by_kind: Mapping[str, float]
    seconds: float


def make_questions(count: int, seed: int) -> list[Question]:
    """Make different questions: all of the kinds with few, and equal parts of the kinds with many."""
    chance = random.Random(seed)
    few = [*_few()]
    kept = {question.text: question for question in chance.sample(few, min(len(few), count))}
    draw = (_sum, _larger, _repeat, _sort)
    while len(kept) < count:
        question = draw[len(kept) % len(draw)](chance)
        kept.setdefault(question.text, question)
    return list(kept.values())


def _few() -> Iterator[Question]:
    for country, city in CAPITALS.items():
        yield Question(kind="capital", text=f"What is the capital of {country}?", expected=city)
    for word, other in OPPOSITES.items():
        yield Question(kind="opposite", text=f"What is the opposite of {word}?", expected=other)
    for day, after in zip(DAYS, (*DAYS[1:], DAYS[0]), strict=True):
        yield Question(kind="day", text=f"Which day comes after {day}?", expected=after)
    for word in WORDS:
        yield Question(kind="backwards", text=f"Spell the word {word} backwards.", expected=word[::-1])


def _sum(chance: random.Random) -> Question:
    a, b = chance.randint(0, LARGEST_SUMMAND), chance.randint(0, LARGEST_SUMMAND)
    return Question(kind="sum", text=f"What is {a} + {b}?", expected=a + b)


def _larger(chance: random.Random) -> Question:
    a, b = chance.sample(range(LARGEST_NUMBER + 1), 2)
    return Question(kind="larger", text=f"Which is larger, {a} or {b}?", expected=max(a, b))


def _repeat(chance: random.Random) -> Question:
    words = chance.sample(WORDS, 3)
    return Question(kind="repeat", text=f"Repeat these words: {', '.join(words)}.", expected=words)


def _sort(chance: random.Random) -> Question:
    numbers = chance.sample(range(1, LARGEST_NUMBER + 1), 3)
    return Question(kind="sort", text=f"Sort these numbers: {', '.join(map(str, numbers))}.", expected=sorted(numbers))


def read_answer(kind: str, answer: str) -> object:
    """The content of an answer, whatever the words around it, or None if it has none of this kind."""
    return READERS[kind](answer.strip())


def _found(pattern: str, answer: str) -> str | None:
    match = re.search(pattern, answer)
    return match[1] if match else None


def _number(pattern: str) -> Callable[[str], int | None]:
    def read(answer: str) -> int | None:
        found = _found(pattern, answer)
        return None if found is None else int(found)

    return read


READERS: Mapping[str, Callable[[str], object]] = {
    "capital": lambda answer: _found(r" is ([\w ]+?)\.?$", answer),
    "opposite": lambda answer: _found(r" is (\w+)\.?$", answer),
    "day": lambda answer: _found(r"^(\w+)", answer),
    "backwards": lambda answer: answer.rstrip(".").replace("-", ""),
    "sum": _number(r"= (\d+)\.?$"),
    "larger": _number(r"^(\d+)"),
    "repeat": lambda answer: answer.rstrip(".").split(", "),
    "sort": lambda answer: [int(number) for number in re.findall(r"\d+", answer)],
}


def ask(opened: Opened, question: str, *, think: bool) -> tuple[str, str]:
    """The whole reply, greedily, and the part of it that is the answer."""
    speech = opened.speech
    opening = open_dialogue(speech, [{"role": "user", "content": question}], think=think)
    tokens = speech.encode(opening.text)
    with opened.runtime.start(len(tokens) + MOST_TOKENS) as stepper:
        steps = list(
            Generation(
                stepper,
                tokens,
                sampler=Sampler(GREEDY),
                thinking=Thinking(speech.marks, is_inside=opening.is_inside),
                is_end=speech.is_end,
                max_new_tokens=MOST_TOKENS,
            )
        )
    answer = [step.token for step in steps if step.place is Place.ANSWER]
    return _text(opened, [step.token for step in steps]), _text(opened, answer)


def _text(opened: Opened, tokens: Sequence[int]) -> str:
    stream = TextStream(opened.speech.piece)
    return "".join(map(stream.add, tokens)) + stream.end()


def run(
    name: str, opener: AbstractContextManager[Opened], questions: Sequence[Question], modes: Sequence[str]
) -> Result:
    """Ask every question in every mode."""
    started, replies, is_right = time.perf_counter(), {}, {}
    with opener as opened:
        for mode in modes:
            found = [ask(opened, question.text, think=MODES[mode]) for question in questions]
            replies[mode] = [reply for reply, _ in found]
            is_right[mode] = [
                read_answer(question.kind, answer) == question.expected
                for question, (_, answer) in zip(questions, found, strict=True)
            ]
        runtime = opened.runtime.name
    return Result(name=name, runtime=runtime, seconds=time.perf_counter() - started, replies=replies, is_right=is_right)


def compare(result: Result, reference: Result, questions: Sequence[Question]) -> Row:
    """One line of the table."""
    modes = list(result.replies)
    pairs = {mode: list(zip(result.is_right[mode], reference.is_right[mode], strict=True)) for mode in modes}
    lost = {mode: sum(right and not own for own, right in found) for mode, found in pairs.items()}
    won = {mode: sum(own and not right for own, right in found) for mode, found in pairs.items()}
    same = [a == b for mode in modes for a, b in zip(result.replies[mode], reference.replies[mode], strict=True)]
    by_kind: dict[str, list[bool]] = {}
    for mode in modes:
        for question, is_right in zip(questions, result.is_right[mode], strict=True):
            by_kind.setdefault(question.kind, []).append(is_right)
    return Row(
        name=result.name,
        runtime=result.runtime,
        asked=len(questions),
        accuracy={mode: _share(result.is_right[mode]) for mode in modes},
        lost=lost,
        won=won,
        p_value={mode: mcnemar(lost[mode], won[mode]) for mode in modes},
        same_replies=_share(same),
        accuracy_by_kind={kind: _share(found) for kind, found in by_kind.items()},
        seconds=result.seconds,
    )


def mcnemar(lost: int, won: int) -> float:
    """The probability of a split at least this uneven if each question were a coin toss."""
    count = lost + won
    tail = sum(math.comb(count, k) for k in range(min(lost, won) + 1))
    return min(1.0, 2 * tail / 2**count)


def _share(found: Sequence[bool]) -> float:
    return sum(found) / len(found)


def table(rows: Sequence[Row]) -> str:
    """A Markdown table: for each mode the share of right answers, those lost and won against fp32, and the test's p."""
    modes = list(rows[0].accuracy)
    head = [
        "",
        *(column for mode in modes for column in (f"{mode} %", "lost", "won", "p")),
        "same replies %",
        "seconds",
    ]
    lines = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for row in rows:
        line = [row.name]
        for mode in modes:
            tested = [str(row.lost[mode]), str(row.won[mode]), f"{row.p_value[mode]:.2g}"]
            line += [f"{100 * row.accuracy[mode]:.1f}", *(tested if row is not rows[0] else [""] * 3)]
        lines.append([*line, f"{100 * row.same_replies:.1f}", f"{row.seconds:.0f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    arguments = _arguments()
    if "OMP_WAIT_POLICY" not in os.environ:  # torch reads it once: see quality.py
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"OMP_WAIT_POLICY": "PASSIVE"})
    questions = make_questions(arguments.count, arguments.seed)
    modes = list(MODES) if arguments.mode == "both" else [arguments.mode]
    reference = run(REFERENCE, open_checkpoint(load("demo")), questions, modes)
    rows = [compare(reference, reference, questions)]
    for path in arguments.artifacts:
        print(f"{path}: asking", file=sys.stderr, flush=True)
        rows.append(compare(run(path.name, open_artifact(path), questions, modes), reference, questions))
    print(table(rows))
    if arguments.json:
        _save(arguments.json, rows, arguments)


def _save(path: Path, rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    document = {"questions": arguments.count, "seed": arguments.seed, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mode", choices=["both", *MODES], default="both")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
