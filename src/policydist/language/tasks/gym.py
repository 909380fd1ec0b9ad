"""Tasks of the reasoning-gym library, graded by the library's own scorers.

Some of those scorers run the answer through `eval` or sympy's parser, which runs it too. Answers to them are first
checked to be a plain literal or a plain formula (`expressions`); anything else is scored as no answer at all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from policydist.errors import MissingExtraError, UsageError, nearest
from policydist.language.tasks.base import Grader, Row, Task
from policydist.language.tasks.expressions import is_formula, is_literal
from policydist.language.tasks.extraction import check_ways, extract_answer

EVALUATED: Mapping[str, Callable[[str], bool]] = {
    "string_insertion": is_literal,
    "spiral_matrix": is_literal,
    "binary_matrix": is_literal,
    "n_queens": is_literal,
    "countdown": is_formula,
    "puzzle24": is_formula,
    "simple_integration": is_formula,
    "intermediate_integration": is_formula,
    "polynomial_multiplication": is_formula,
}
"""Datasets whose scorer evaluates the answer (read in release 0.1.25), and what an answer must be to reach it."""

WAYS = ("tag", "boxed", "marker", "all")
"""Answers may span lines (grids), so without a mark the whole response counts, not its last line."""


def load_gym(name: str, *, seed: int, options: Mapping[str, Any], train_size: int = 512, test_size: int = 128) -> Task:
    """The task ``reasoning-gym:<name>``; ``options`` are fields of the dataset's own configuration.

    The first ``train_size`` problems of the seed are for training, the next ``test_size`` for testing.

    Raises:
        MissingExtraError: when reasoning-gym is not installed.
        UsageError: for an unknown name or option, or a value that the dataset refuses.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise MissingExtraError("reasoning-gym", "tasks") from error
    if name not in DATASETS:
        raise UsageError(f"unknown reasoning-gym task {name!r}: {nearest(name, DATASETS)}")
    known = {field.name for field in dataclasses.fields(DATASETS[name][1])} - {"seed", "size"}
    for option in options:
        if option not in known:
            raise UsageError(f"reasoning-gym:{name} has no option {option!r}: {nearest(option, known)}")
    try:
        create: Any = reasoning_gym.create_dataset  # the library is untyped
        problems = create(name, seed=seed, size=train_size + test_size, **options)
        entries = [problems[number] for number in range(train_size + test_size)]
    except Exception as error:  # configurations assert; generators fail in ways of their own
        raise UsageError(f"reasoning-gym:{name}: {type(error).__name__}: {error}") from error
    rows: list[Row] = [{"prompt": entry["question"], "answer": entry["answer"], "entry": entry} for entry in entries]
    grader = gym_grader(name, problems.score_answer)
    return Task(f"reasoning-gym:{name}", rows[:train_size], rows[train_size:], {"accuracy": grader}, max_new_tokens=256)


def gym_grader(name: str, scorer: Callable[..., float], extraction: Sequence[str] = WAYS) -> Grader:
    """The library's score in [0, 1]; an answer that its scorer cannot digest and raises on earns 0."""
    ways = check_ways(extraction)
    admit = EVALUATED.get(name)

    def score(response: str, entry: dict[str, Any]) -> float:
        answer = extract_answer(response, ways)
        if not answer:
            return 0.0
        exact = answer == str(entry["answer"]).strip() or answer in entry["metadata"].get("valid_answers", ())
        safe = admit is None or exact or admit(answer)
        try:
            return float(scorer(answer if safe else None, entry))
        except Exception:  # scorers assume well-formed answers; a malformed one is wrong, not a failed run
            return 0.0

    def grade(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
        return [score(response, row["entry"]) for response, row in zip(responses, rows, strict=True)]

    return grade
