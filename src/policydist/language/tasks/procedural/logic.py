"""Knights and knaves. ``B-,A=C,A+?``: A says B is a knave, B says A and C are alike, C says A is a knight.

Knights (K) speak the truth, knaves (N) lie. The answer names every speaker in order: ``#KNK``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np

from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural.rows import MARKER, exact, grader, levels, split

NAMES = "ABCDE"
KINDS = "+-=/&|"
"""``B+`` knight, ``B-`` knave, ``B=C`` alike, ``B/C`` different, ``B&C`` both knights, ``B|C`` at least one knight."""


def build(seed: int = 0, train_size: int = 4096, test_size: int = 256, difficulty: int | Sequence[int] = 4) -> Task:
    """Puzzles with exactly one solution, found by trying all. ``difficulty`` is the number of people (3 to 5).

    Three people give only a few hundred distinct puzzles; ask for smaller sets there.
    """
    chosen = levels("logic", difficulty, 3, 5)
    train, test = split("logic", draw, chosen, seed, train_size, test_size)
    return Task("logic", train, test, {"accuracy": grader(exact)}, max_new_tokens=max(chosen) + 4)


def draw(rng: np.random.Generator, difficulty: int) -> tuple[str, Row] | None:
    """One puzzle of ``difficulty`` people, or None where the statements have no single solution or make all alike.

    Puzzles in which everyone is alike are left out: they would make up a third, and guessing would pay.
    """
    statements = [_statement(rng, speaker, difficulty) for speaker in range(difficulty)]
    found = solutions(statements)
    if len(found) != 1 or len(set(found[0])) == 1:
        return None
    text = ",".join(statements)
    return text, {"prompt": f"{text}?", "answer": found[0], "statements": statements, "difficulty": difficulty}


def solutions(statements: Sequence[str]) -> list[str]:
    """Every assignment of K and N under which exactly the knights' statements are true."""
    people = len(statements)
    everyone = (1 << (1 << people)) - 1
    possible = everyone
    for speaker, statement in enumerate(statements):
        possible &= everyone ^ (_knight(speaker, people) ^ _worlds(statement, people))
    return [
        "".join("NK"[world >> person & 1] for person in range(people))
        for world in range(1 << people)
        if possible >> world & 1
    ]


def working(row: Row, rng: np.random.Generator, slip: float) -> str:
    """The solution; with probability ``slip`` one or two people are taken for the other kind."""
    people = list(row["answer"])
    if rng.random() < slip:
        for i in rng.choice(len(people), size=int(rng.integers(1, 3)), replace=False):
            people[i] = "N" if people[i] == "K" else "K"
    return MARKER + "".join(people)


def _statement(rng: np.random.Generator, speaker: int, people: int) -> str:
    """A statement about others; the two names of a pair are in order, so that equal puzzles are spelt equally."""
    kind = KINDS[rng.integers(len(KINDS))]
    others = [i for i in range(people) if i != speaker]
    if kind in "+-":
        return f"{NAMES[others[rng.integers(len(others))]]}{kind}"
    pairs = list(combinations(others, 2))
    first, second = pairs[rng.integers(len(pairs))]
    return f"{NAMES[first]}{kind}{NAMES[second]}"


@cache
def _knight(person: int, people: int) -> int:
    """The set of worlds, one bit each, in which a person is a knight."""
    return sum(1 << world for world in range(1 << people) if world >> person & 1)


@cache
def _worlds(statement: str, people: int) -> int:
    """The set of worlds, one bit each, in which a statement is true."""
    everyone = (1 << (1 << people)) - 1
    left, kind = _knight(NAMES.index(statement[0]), people), statement[1]
    if kind in "+-":
        return left if kind == "+" else everyone ^ left
    right = _knight(NAMES.index(statement[2]), people)
    return {"=": everyone ^ left ^ right, "/": left ^ right, "&": left & right, "|": left | right}[kind]
