"""Five short tasks with exact graders, each seeded, with a difficulty and with test rows that no seed trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from types import MappingProxyType
from typing import Any

import numpy as np

from policydist.errors import UsageError, nearest
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural import arithmetic, chain, countdown, logic, multi
from policydist.language.tasks.procedural.rows import MARKER, final_answer
from policydist.runs.seeds import numpy_generator

__all__ = ["MARKER", "PROCEDURAL", "final_answer", "solution"]

_MODULES: Mapping[str, Any] = {
    "arithmetic": arithmetic, "countdown": countdown, "chain": chain, "logic": logic, "multi": multi,
}  # fmt: skip


def _worked(name: str, build: Callable[..., Task]) -> Callable[..., Task]:
    """The builder, with a worked solution as every row's ``completion``: what supervised methods imitate."""

    def answered(rows: Sequence[Row], seed: int, *stream: object) -> list[Row]:
        rng = numpy_generator(seed, *stream)
        return [{**row, "completion": solution(name, row, rng)} for row in rows]

    @wraps(build)
    def built(seed: int = 0, *sizes: int, **options: Any) -> Task:
        task = build(seed, *sizes, **options)
        train, test = (
            answered(rows, seed, "solution", name, side) for side, rows in (("train", task.train), ("test", task.test))
        )
        return replace(task, train=train, test=test)

    return built


def solution(name: str, row: Row, rng: np.random.Generator, slip: float = 0.0) -> str:
    """A worked solution of a row of task ``name``, as one would write it for supervised training.

    ``slip`` is the probability (0 to 1) that a step goes wrong and the rest builds on it: 0 gives right solutions only.

    Raises:
        UsageError: for an unknown task.
    """
    if name not in _MODULES:
        raise UsageError(f"unknown task {name!r}: {nearest(name, _MODULES)}")
    text: str = _MODULES[name].working(row, rng, slip)
    return text


PROCEDURAL: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {name: _worked(name, module.build) for name, module in _MODULES.items()}
)
"""Task builders ``build(seed=0, train_size=4096, test_size=256, difficulty=…)`` by name; each row has a ``prompt``, what
its grader needs, and a right ``completion``."""
