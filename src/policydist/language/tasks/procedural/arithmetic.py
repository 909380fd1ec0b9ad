"""Sums of two-digit numbers, done one operation at a time: ``17+25-19=`` is answered ``42-19#23``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policydist.errors import UsageError
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural.rows import MARKER, exact, grader, levels, split

LOWEST, HIGHEST = 10, 99
_TAIL_LEVELS = (8, 9, 10)


def build(
    seed: int = 0,
    train_size: int = 4096,
    test_size: int = 256,
    difficulty: int | Sequence[int] = (2, 3),
    tail: float = 0.0,
) -> Task:
    """Arithmetic with working. ``difficulty`` is the number of operations (1 to 10).

    ``tail`` is the share of training rows (0 to 1) that have 8 to 10 operations instead, whose working is some 100 to
    150 characters long: the skewed response lengths that benchmarks need. All terms and partial results have two digits.
    """
    chosen = levels("arithmetic", difficulty, 1, 10)
    if not 0 <= tail <= 1:
        raise UsageError(f"task arithmetic: tail is {tail}; it must lie in 0..1")
    train, test = split("arithmetic", draw, chosen, seed, train_size - round(tail * train_size), test_size)
    if tail:
        long, _ = split("arithmetic", draw, _TAIL_LEVELS, seed, round(tail * train_size), 0)
        order = np.random.default_rng(seed).permutation(train_size)
        train = [(train + long)[i] for i in order]
    longest = max(*chosen, max(_TAIL_LEVELS) if tail else 1)
    return Task("arithmetic", train, test, {"accuracy": grader(exact)}, max_new_tokens=_longest_working(longest) + 4)


def draw(rng: np.random.Generator, difficulty: int) -> tuple[str, Row]:
    """One sum of ``difficulty`` operations whose terms and partial results lie in 10 to 99."""
    total = int(rng.integers(LOWEST, HIGHEST + 1))
    terms = [total]
    for _ in range(difficulty):
        up, down = HIGHEST - total, total - LOWEST
        plus = down < LOWEST or (up >= LOWEST and bool(rng.integers(2)))
        term = int(rng.integers(LOWEST, (up if plus else down) + 1))
        terms.append(term if plus else -term)
        total += terms[-1]
    text = _write(terms)
    return text, {"prompt": f"{text}=", "answer": str(total), "terms": terms, "difficulty": difficulty}


def working(row: Row, rng: np.random.Generator, slip: float) -> str:
    """The sum rewritten after each operation; every result is off with probability ``slip``."""
    terms = list(row["terms"])
    lines = []
    while len(terms) > 1:
        total = terms[0] + terms[1]
        if rng.random() < slip:
            total = _misread(total, rng)
        terms = [total, *terms[2:]]
        lines.append(_write(terms))
    return "=".join(lines[:-1]) + MARKER + lines[-1]


def _misread(total: int, rng: np.random.Generator) -> int:
    """A result with one wrong digit: a carry forgotten or a unit miscounted."""
    return total + int(rng.choice((-10, -1, 1, 10)))


def _write(terms: Sequence[int]) -> str:
    return str(terms[0]) + "".join(f"{term:+d}" for term in terms[1:])


def _longest_working(operations: int) -> int:
    """Characters of ``operations`` lines of at most 2, 5, … characters and the separator before each."""
    return sum(3 * left + 2 for left in range(operations)) + operations
