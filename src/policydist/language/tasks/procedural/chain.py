"""Modular chains, worked off from left to right: ``4*3+5*2%7:`` is answered ``4,5,3#6``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural.rows import MARKER, exact, grader, levels, split

MODULI = (5, 7, 9)


def build(
    seed: int = 0, train_size: int = 4096, test_size: int = 256, difficulty: int | Sequence[int] = (3, 4)
) -> Task:
    """Chains of one-digit operations modulo 5, 7 or 9. ``difficulty`` is the number of operations (2 to 48)."""
    chosen = levels("chain", difficulty, 2, 48)
    train, test = split("chain", draw, chosen, seed, train_size, test_size)
    return Task("chain", train, test, {"accuracy": grader(exact)}, max_new_tokens=2 * max(chosen) + 5)


def draw(rng: np.random.Generator, difficulty: int) -> tuple[str, Row]:
    """One chain: a start value, ``difficulty`` pairs of an operation and a digit, and the modulus."""
    modulus = int(MODULI[rng.integers(len(MODULI))])
    start = int(rng.integers(modulus))
    steps = [("+-*"[rng.integers(3)], int(rng.integers(2, 10))) for _ in range(difficulty)]
    values = _values(start, steps, modulus)
    text = f"{start}{''.join(f'{op}{digit}' for op, digit in steps)}%{modulus}"
    row = {"start": start, "steps": [list(step) for step in steps], "modulus": modulus, "difficulty": difficulty}
    parts = {"context": text.partition("%")[0], "question": f"%{modulus}:"}
    return text, {"prompt": f"{text}:", "answer": str(values[-1]), **parts, **row}


def working(row: Row, rng: np.random.Generator, slip: float) -> str:
    """The start value and the value after each operation; each of these is wrong with probability ``slip`` and carried on."""
    value, modulus = row["start"], row["modulus"]
    values = [str(value)]
    for step in row["steps"]:
        value = _values(value, [step], modulus)[0]
        if rng.random() < slip:
            value = (value + int(rng.integers(1, modulus))) % modulus
        values.append(str(value))
    return ",".join(values[:-1]) + MARKER + values[-1]


def _values(start: int, steps: Sequence[Sequence[object]], modulus: int) -> list[int]:
    values, value = [], start
    for op, digit in steps:
        d = int(str(digit))
        value = (value + d if op == "+" else value - d if op == "-" else value * d) % modulus
        values.append(value)
    return values
