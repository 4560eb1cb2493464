"""The taught questions: different ones, answers that are read as they are meant, and an exact test."""

from __future__ import annotations

import importlib.util
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "taught_questions.py"


@pytest.fixture(scope="module")
def taught() -> ModuleType:
    spec = importlib.util.spec_from_file_location("taught_questions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["taught_questions"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_questions_are_different_and_always_the_same(taught: ModuleType) -> None:
    questions = taught.make_questions(400, 0)
    assert len({question.text for question in questions}) == 400
    assert questions == taught.make_questions(400, 0) != taught.make_questions(400, 1)
    assert {question.kind for question in questions} == set(taught.READERS)
    assert len(taught.make_questions(20, 0)) == 20


@pytest.mark.parametrize(
    ("kind", "answer", "meant"),
    [
        ("sum", "17 + 5 = 22.", 22),
        ("sum", "17 + 5.", None),
        ("capital", "The capital of India is New Delhi.", "New Delhi"),
        ("opposite", "\n\nThe opposite of hot is cold.", "cold"),
        ("day", "Tuesday comes after Monday.", "Tuesday"),
        ("backwards", "t-a-c", "tac"),
        ("larger", "90 is larger.", 90),
        ("larger", "the larger", None),
        ("repeat", "cat, dog, sun.", ["cat", "dog", "sun"]),
        ("sort", "3, 9, 50.", [3, 9, 50]),
    ],
)
def test_answers_are_read(taught: ModuleType, kind: str, answer: str, meant: object) -> None:
    assert taught.read_answer(kind, answer) == meant


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (5, 0), (3, 4), (9, 2), (2, 9)])
def test_the_paired_test_counts_coins(taught: ModuleType, lost: int, won: int) -> None:
    """Of all ways in which coins may fall, those that are at least as uneven."""
    falls = [sum(coins) for coins in product((0, 1), repeat=lost + won)]
    uneven = [fall for fall in falls if abs(2 * fall - lost - won) >= abs(lost - won)]
    assert taught.mcnemar(lost, won) == pytest.approx(float(Fraction(len(uneven), len(falls))))
