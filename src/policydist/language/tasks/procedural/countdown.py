"""Reach a target from given numbers: ``3,7,2>23:`` is answered by an expression such as ``#3*7+2``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.expressions import ExpressionError, evaluate_expression, numbers_used
from policydist.language.tasks.procedural.rows import MARKER, grader, levels, split

_SHAPE = re.compile(r"[0-9+*()-]+", re.ASCII)
_HIGHEST_NUMBER, _HIGHEST_TARGET = 20, 99


def build(seed: int = 0, train_size: int = 4096, test_size: int = 256, difficulty: int | Sequence[int] = 3) -> Task:
    """Countdown with + - * on numbers from 1 to 20, each used at most once. ``difficulty`` is how many (2 to 6).

    Two numbers give only a few hundred distinct rows; ask for smaller sets there.
    """
    chosen = levels("countdown", difficulty, 2, 6)
    train, test = split("countdown", draw, chosen, seed, train_size, test_size)
    return Task("countdown", train, test, {"accuracy": grader(accepts)}, max_new_tokens=5 * max(chosen) + 4)


def draw(rng: np.random.Generator, difficulty: int) -> tuple[str, Row] | None:
    """A target that all numbers together reach, or None where it is not 1 to 99 or is one of the numbers."""
    numbers = rng.integers(1, _HIGHEST_NUMBER + 1, size=difficulty).tolist()
    expression, target = _expression(numbers, rng)
    if not 1 <= target <= _HIGHEST_TARGET or target in numbers:
        return None
    shown = ",".join(str(n) for n in rng.permutation(numbers))
    key = f"{','.join(map(str, sorted(numbers)))}>{target}"
    row = {"prompt": f"{shown}>{target}:", "answer": expression, "numbers": numbers, "target": target}
    return key, {**row, "difficulty": difficulty}


def accepts(answer: str, row: Row) -> bool:
    """Whether an answer is an expression of + - * that equals the target and uses each number at most once."""
    if not _SHAPE.fullmatch(answer):
        return False
    try:
        used, value = numbers_used(answer), evaluate_expression(answer, operators="+-*")
    except ExpressionError:
        return False
    return bool(value == row["target"] and Counter(used) <= Counter(row["numbers"]))


def working(row: Row, rng: np.random.Generator, slip: float) -> str:
    """The row's expression; with probability ``slip`` another expression of the same numbers."""
    if rng.random() < slip:
        return MARKER + _expression(rng.permutation(row["numbers"]).tolist(), rng)[0]
    return MARKER + str(row["answer"])


def _expression(numbers: Sequence[int], rng: np.random.Generator) -> tuple[str, int]:
    """A random expression of the numbers in their order, each joined on the right, and its value."""
    text, value, is_sum = str(numbers[0]), numbers[0], False
    for number in numbers[1:]:
        op = "+-*"[rng.integers(3)]
        text = f"({text})*{number}" if op == "*" and is_sum else f"{text}{op}{number}"
        value = value * number if op == "*" else value + number if op == "+" else value - number
        is_sum = op != "*"
    return text, value
