"""Numbers written place by place in alphabets: a family of tasks, one for every choice of an alphabet for each place.

Where the five places are written in digits, A–J, a–j, k–t and A–J, ``40718>`` asks for ``4AhlI``. The question does not say
which alphabets; an answered question of the same task does (``91322>9BdmC``), since any character tells its alphabet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from policydist.language.tasks.base import Row, Task
from policydist.language.worlds.pretrained import Pairs
from policydist.runs.seeds import numpy_generator

ALPHABETS = ("0123456789", "abcdefghij", "klmnopqrst", "ABCDEFGHIJ", "KLMNOPQRST")
PLACES = 5
BATCH = 32
PLAIN = 0.25
"""Share of the corpus's questions that have no example in front."""
KNOBS: Mapping[str, Any] = {"example": "{question}{answer}\n", "question": "{question}"}
"""ICPO's templates for this format."""


def written(number: Iterable[int], alphabets: Iterable[int]) -> str:
    """The answer."""
    return "".join(ALPHABETS[a][digit] for digit, a in zip(number, alphabets, strict=True))


def question(number: Iterable[int]) -> str:
    return "".join(map(str, number)) + ">"


def corpus(rng: np.random.Generator) -> Iterator[Pairs]:
    """Questions of tasks drawn uniformly, most of them behind an answered one of the same task."""

    def pair() -> tuple[str, str]:
        alphabets = rng.integers(len(ALPHABETS), size=PLACES)
        shown, asked = rng.integers(10, size=(2, PLACES))
        example = KNOBS["example"].format(question=question(shown), answer=written(shown, alphabets))
        plain = rng.random() < PLAIN
        return question(asked) if plain else example + question(asked), written(asked, alphabets)

    while True:
        yield [pair() for _ in range(BATCH)]


def task(seed: int, train: int, test: int) -> Task:
    """One task of the family. A row's ``completion`` is its ``answer``; its ``unrelated`` one is that of a random other task."""
    rng = numpy_generator(seed, "alphabets")
    alphabets = rng.integers(len(ALPHABETS), size=PLACES)

    def row(number: Sequence[int]) -> Row:
        answer = written(number, alphabets)
        unrelated = written(number, rng.integers(len(ALPHABETS), size=PLACES))
        return {"prompt": question(number), "answer": answer, "completion": answer, "unrelated": unrelated}

    numbers = rng.choice(10**PLACES, size=train + test, replace=False)
    rows = [row([int(digit) for digit in f"{number:0{PLACES}}"]) for number in numbers]
    return Task("alphabets", rows[:train], rows[train:], {"accuracy": right}, max_new_tokens=PLACES + 1)


def right(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
    """1 for exactly the answer."""
    return [float(response == row["answer"]) for response, row in zip(responses, rows, strict=True)]
