"""Questions with several right answers, graded by the constraints themselves.

``n>20,n%7=3:`` asks for any number from 0 to 99 that fits (``#24``, ``#31``, …); ``a+b=9,a*b>9:`` asks for any pair of
digits (``#4,5``). A policy that knows one right answer to each is as accurate as one that knows them all, which is
what methods that preserve diversity are measured on.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import permutations

import numpy as np

from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.grading import rubric as rubric_grader
from policydist.language.tasks.procedural.rows import MARKER, grader, levels, split

_COMPARE: dict[str, Callable[[int, int], bool]] = {">": operator.gt, "<": operator.lt, "=": operator.eq}
_PAIR_TERMS: dict[str, Callable[[int, int], int]] = {"a+b": operator.add, "a*b": operator.mul, "a-b": operator.sub}
_FEWEST, _MOST = 3, 30
_ORDERS = {count: tuple(permutations(range(3), count)) for count in (2, 3)}
_NUMBER = re.compile(r"(0|[1-9][0-9]?)", re.ASCII)
_PAIR = re.compile(r"([0-9]),([0-9])", re.ASCII)


def build(
    seed: int = 0,
    train_size: int = 4096,
    test_size: int = 256,
    difficulty: int | Sequence[int] = (2, 3),
    rubric: bool = False,
) -> Task:
    """Numbers and pairs of digits under constraints. ``difficulty`` is the number of constraints (2 or 3).

    Every row has 3 to 30 right answers out of 100, listed in ``answers`` so that coverage can be measured. With
    ``rubric`` each constraint is a criterion of the row's rubric and the reward is the share that is met; accuracy still
    asks for all.
    """
    chosen = levels("multi", difficulty, 2, 3)
    train, test = split("multi", draw, chosen, seed, train_size, test_size)
    if not rubric:
        return Task("multi", train, test, {"accuracy": grader(accepts)}, max_new_tokens=8)
    rated: list[list[Row]] = [[{**row, "rubric": criteria(row)} for row in rows] for rows in (train, test)]
    graders = {"accuracy": grader(accepts), "rubric": rubric_grader()}
    return Task("multi", rated[0], rated[1], graders, weights={"accuracy": 0.0, "rubric": 1.0}, max_new_tokens=8)


def criteria(row: Row) -> list[dict[str, str]]:
    """One criterion a constraint: the response ends in an answer that meets it."""
    pair = row["kind"] == "pair"
    found = []
    for constraint in row["constraints"]:
        fitting = "|".join(f"{n // 10},{n % 10}" if pair else str(n) for n in sorted(_fitting(constraint, pair)))
        found.append({"kind": "regex", "value": rf"{MARKER}(?:{fitting})\Z", "text": constraint})
    return found


def draw(rng: np.random.Generator, difficulty: int) -> tuple[str, Row] | None:
    """One question with ``difficulty`` constraints, or None where it has too few or too many answers."""
    pair = bool(rng.integers(2))
    constraints = _pair_constraints(rng, difficulty) if pair else _number_constraints(rng, difficulty)
    if len({constraint[:3] for constraint in constraints}) < difficulty:
        return None
    row = {"constraints": constraints, "kind": "pair" if pair else "number", "difficulty": difficulty}
    fitting = frozenset.intersection(*(_fitting(constraint, pair) for constraint in constraints))
    answers = [f"{n // 10},{n % 10}" if pair else str(n) for n in sorted(fitting)]
    if not _FEWEST <= len(answers) <= _MOST:
        return None
    prompt = f"{','.join(constraints)}:"
    return ",".join(sorted(constraints)), {"prompt": prompt, "answer": answers[0], "answers": answers, **row}


def accepts(answer: str, row: Row) -> bool:
    """Whether an answer is one number or pair in the plain spelling and meets every constraint."""
    match = (_PAIR if row["kind"] == "pair" else _NUMBER).fullmatch(answer)
    return match is not None and all(
        _holds(constraint, [int(v) for v in match.groups()]) for constraint in row["constraints"]
    )


def working(row: Row, rng: np.random.Generator, slip: float) -> str:
    """A right answer, each equally likely; with probability ``slip`` any number or pair."""
    answers = row["answers"]
    if rng.random() < slip:
        tens, units = rng.integers(10, size=2)
        return MARKER + (f"{tens},{units}" if row["kind"] == "pair" else str(10 * tens + units))
    return MARKER + str(answers[rng.integers(len(answers))])


@cache
def _fitting(constraint: str, pair: bool) -> frozenset[int]:
    """All numbers from 0 to 99, or all pairs of digits written as ``10 a + b``, that meet one constraint."""
    return frozenset(n for n in range(100) if _holds(constraint, divmod(n, 10) if pair else (n,)))


def _number_constraints(rng: np.random.Generator, count: int) -> list[str]:
    lower, width = int(rng.integers(5, 70)), int(rng.integers(15, 40))
    modulus = int(rng.integers(2, 8))
    options = [f"n>{lower}", f"n<{min(lower + width, 99)}", f"n%{modulus}={rng.integers(modulus)}"]
    return _some(options, count, rng)


def _pair_constraints(rng: np.random.Generator, count: int) -> list[str]:
    options = [
        f"a+b{'<>='[rng.integers(3)]}{rng.integers(4, 15)}",
        f"a*b{'<>'[rng.integers(2)]}{rng.integers(6, 50)}",
        f"a-b{'<>='[rng.integers(3)]}{rng.integers(0, 6)}",
    ]
    return _some(options, count, rng)


def _some(options: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` of the options in random order."""
    orders = _ORDERS[count]
    return [options[i] for i in orders[rng.integers(len(orders))]]


def _holds(constraint: str, values: Sequence[int]) -> bool:
    term, compare, bound = re.fullmatch(r"(n%\d|n|a.b)([<>=])(\d+)", constraint).groups()  # type: ignore[union-attr]
    if term in _PAIR_TERMS:
        left = _PAIR_TERMS[term](values[0], values[1])
    else:
        left = values[0] % int(term[2]) if term != "n" else values[0]
    return _COMPARE[compare](left, int(bound))
