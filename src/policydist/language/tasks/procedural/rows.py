"""What the procedural tasks share: the answer marker, the difficulty option and the seeded, disjoint split."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from policydist.errors import UsageError
from policydist.language.tasks.base import Grader, Row
from policydist.runs.seeds import numpy_generator

MARKER = "#"
"""A response is working, then this character, then the answer. What follows the *last* marker is graded."""

Draw = Callable[[np.random.Generator, int], "tuple[str, Row] | None"]
"""One random problem of a difficulty: the key that identifies it up to symmetry, and its row; None to draw again."""

_LONGEST_ANSWER = 64
_TEST_SHARE = 8
_PATIENCE = 4000


def final_answer(response: str) -> str | None:
    """The text behind the last marker without surrounding blanks; None where the marker or the text is missing."""
    _, marker, answer = response.rpartition(MARKER)
    answer = answer.strip(" \n")
    return answer if marker and 0 < len(answer) <= _LONGEST_ANSWER else None


def grader(accepts: Callable[[str, Row], bool]) -> Grader:
    """A 0/1 grader from a predicate on the final answer and its row."""

    def grade(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
        answers = [final_answer(response) for response in responses]
        return [float(a is not None and accepts(a, row)) for a, row in zip(answers, rows, strict=True)]

    return grade


def exact(answer: str, row: Row) -> bool:
    """Whether the final answer is the row's answer, character by character."""
    return bool(answer == row["answer"])


def levels(task: str, difficulty: int | Sequence[int], lowest: int, highest: int) -> tuple[int, ...]:
    """The difficulties a task mixes in equal shares, checked against what it offers."""
    chosen = (difficulty,) if isinstance(difficulty, int) else tuple(difficulty)
    whole = all(isinstance(level, int) and not isinstance(level, bool) for level in chosen)
    if not chosen or not whole or not all(lowest <= level <= highest for level in chosen):
        raise UsageError(f"task {task}: difficulty is {difficulty!r}; it must lie in {lowest}..{highest}")
    return chosen


def in_test_pool(task: str, key: str) -> bool:
    """Whether a problem belongs to the test side: one eighth of all problems, the same for every seed.

    A split by the problem itself, not by the seed, so that no seed's test rows are in another seed's training rows,
    nor in those of the embedded model.
    """
    return zlib.crc32(f"{task}/{key}".encode()) % _TEST_SHARE == 0


def split(
    task: str, draw: Draw, difficulties: Sequence[int], seed: int, train_size: int, test_size: int
) -> tuple[list[Row], list[Row]]:
    """Distinct training and test rows; each depends on the seed and its own size alone."""
    train = _collect(task, draw, difficulties, seed, train_size, test=False)
    return train, _collect(task, draw, difficulties, seed, test_size, test=True)


def _collect(task: str, draw: Draw, difficulties: Sequence[int], seed: int, size: int, *, test: bool) -> list[Row]:
    side = "test" if test else "train"
    if size < 0:
        raise UsageError(f"task {task}: {side}_size is {size}; it must not be negative")
    chosen = [int(level) for level in difficulties]
    rng = numpy_generator(seed, "task", task, side)
    rows: dict[str, Row] = {}
    misses = 0
    while len(rows) < size:
        drawn = draw(rng, chosen[rng.integers(len(chosen))])
        if drawn is None or drawn[0] in rows or in_test_pool(task, drawn[0]) is not test:
            misses += 1
            if misses > _PATIENCE:
                raise UsageError(
                    f"task {task}: only {len(rows)} distinct {side} rows found at difficulty {list(difficulties)}; "
                    f"ask for a smaller {side}_size or another difficulty"
                )
            continue
        misses = 0
        rows[drawn[0]] = drawn[1]
    return list(rows.values())
