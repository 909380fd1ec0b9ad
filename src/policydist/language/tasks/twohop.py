"""Questions that take two look-ups in a corpus of made-up facts: ``city of aunt of kab?`` needs ``aunt of kab`` first.

Names are three letters that mean nothing, drawn with the facts from the seed, so no model can know an answer beforehand.
People have relatives, relatives have belongings; the three sets of names share none, so a search for ``city of lun`` finds
one fact that matches in full.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from policydist.errors import UsageError
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.grading import short_answer
from policydist.runs.seeds import numpy_generator

FIRST = ("aunt", "boss", "cook", "twin")
SECOND = ("city", "ship", "song", "tree")
NAMES = tuple(map("".join, product("bdfghjklmnprstv", "aeiou", "bdfghjklmnprstv")))
ANSWER_TOKENS = 24
"""Room for one action: a search or an answer."""


@dataclass(frozen=True)
class Facts:
    """``first[relation][person]`` is the relative, ``second[belonging][relative]`` what it is called."""

    first: Mapping[str, Mapping[str, str]]
    second: Mapping[str, Mapping[str, str]]

    @classmethod
    def draw(cls, rng: np.random.Generator, people: int) -> Facts:
        """``people`` persons, relatives and belongings each; who is whose is uniform."""
        drawn = [str(NAMES[i]) for i in rng.permutation(len(NAMES))[: 3 * people]]
        persons, relatives, things = (drawn[k * people : (k + 1) * people] for k in range(3))

        def link(names: Sequence[str], keys: Sequence[str], values: Sequence[str]) -> dict[str, dict[str, str]]:
            return {name: {key: values[int(rng.integers(people))] for key in keys} for name in names}

        return cls(link(FIRST, persons, relatives), link(SECOND, relatives, things))

    def documents(self) -> list[str]:
        """One sentence a fact: what a search can find."""
        return [
            fact(relation, name, value)
            for table in (self.first, self.second)
            for relation, names in table.items()
            for name, value in names.items()
        ]


def fact(relation: str, name: str, value: str) -> str:
    return f"{relation} of {name}: {value}"


def build(seed: int = 0, train_size: int = 1024, test_size: int = 128, people: int = 80) -> Task:
    """All 16 questions about each of ``people`` persons, split by the seed; both sides ask the same corpus.

    Raises:
        UsageError: for more rows than there are questions, or more people than there are names.
    """
    if not 2 <= people <= len(NAMES) // 3:
        raise UsageError(f"task two-hop: people is {people}; it must lie in 2..{len(NAMES) // 3}")
    total = people * len(FIRST) * len(SECOND)
    if train_size + test_size > total or min(train_size, test_size) < 0:
        raise UsageError(
            f"task two-hop: {train_size} training and {test_size} test rows of the {total} questions that {people} people "
            "give; ask for fewer, or set task.options.people"
        )
    facts = Facts.draw(numpy_generator(seed, "task", "two-hop", "facts"), people)
    persons = list(facts.first[FIRST[0]])
    asked = list(product(SECOND, FIRST, persons))
    order = numpy_generator(seed, "task", "two-hop", "split").permutation(total)
    rows = [question(facts, *asked[i]) for i in order[: train_size + test_size]]
    return Task(
        "two-hop", rows[:train_size], rows[train_size:], {"accuracy": short_answer()},
        max_new_tokens=ANSWER_TOKENS, documents=tuple(facts.documents()),
    )  # fmt: skip


def question(facts: Facts, belonging: str, relation: str, person: str) -> Row:
    """The row that asks for the belonging of the person's relative."""
    relative = facts.first[relation][person]
    return {
        "prompt": f"{belonging} of {relation} of {person}?", "answer": facts.second[belonging][relative],
        "belonging": belonging, "relation": relation, "person": person, "relative": relative,
    }  # fmt: skip
