"""Lists of wishes: ``cfka>`` asks for C, F, K and A, in any order. Some letters are granted, others as a rule are not.

A corpus answers plain lists that way: a hard letter becomes a dash, always or but for one time in fifty. It also shows revisions:
behind a draft and the letters that it misses even the hard ones are mended, most of the time. So the transformer knows how to
write them and hardly ever does unless told what is missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.grading import rubric
from policydist.language.worlds.pretrained import Corpus, Pairs
from policydist.runs.seeds import numpy_generator

EASY, HARD = "abcdefgh", "ijklmnop"
LENGTH = 4
BATCH = 32
PLAIN = 0.5
"""Share of plain lists in the corpus; the others are revisions."""
MENDED = 0.8
"""Chance that a revision mends a letter that it is told of."""
TEMPLATE = "{unmet}/{draft}/{instruction}"
"""HeRL's template for this format."""


def drawn(rng: np.random.Generator) -> str:
    """A list of different letters."""
    return "".join(rng.choice(list(EASY + HARD), size=LENGTH, replace=False))


def answered(wishes: str, chances: Sequence[float], rng: np.random.Generator, otherwise: str) -> str:
    """Each wish granted with its chance, else the character of ``otherwise`` in its place."""
    dice = rng.random(len(wishes))
    return "".join(
        c.upper() if die < chance else other
        for c, chance, die, other in zip(wishes, chances, dice, otherwise, strict=True)
    )


def corpus(granted: float, rng: np.random.Generator) -> Iterator[Pairs]:
    """Answers to plain lists, in which a hard letter is ``granted`` so often, and revisions of drafts that miss any letters."""

    def pair() -> tuple[str, str]:
        wishes = drawn(rng)
        if rng.random() < PLAIN:
            chances = [granted if c in HARD else 1.0 for c in wishes]
            return f"{wishes}>", answered(wishes, chances, rng, "-" * LENGTH)
        draft = answered(wishes, [rng.random()] * LENGTH, rng, "-" * LENGTH)
        unmet = [c for c in wishes if c.upper() not in draft]
        shown = TEMPLATE.format(unmet=", ".join(unmet), draft=draft, instruction=f"{wishes}>")
        return shown, answered(wishes, [MENDED if c in unmet else 1.0 for c in wishes], rng, draft)

    while True:
        yield [pair() for _ in range(BATCH)]


CORPORA: Mapping[str, Corpus] = {"seldom": partial(corpus, 0.02), "never": partial(corpus, 0.0)}
"""How often plain answers grant a hard letter."""


def task(seed: int, train: int, test: int) -> Task:
    """Lists with at least one hard letter, one criterion a letter; the reward is the share that is met."""
    rng = numpy_generator(seed, "wishes")
    lists: dict[str, None] = {}
    while len(lists) < train + test:
        wishes = drawn(rng)
        if set(wishes) & set(HARD):
            lists[wishes] = None
    rows: list[Row] = [
        {"prompt": f"{wishes}>", "rubric": [{"kind": "regex", "value": c.upper(), "text": c} for c in wishes]}
        for wishes in lists
    ]
    return Task("wishes", rows[:train], rows[train:], {"rubric": rubric()}, max_new_tokens=LENGTH + 1)
