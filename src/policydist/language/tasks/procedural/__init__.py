"""Five short tasks with exact graders, each seeded, with a difficulty and with test rows that no seed trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

from policydist.errors import UsageError, nearest
from policydist.language.tasks.base import Row, Task
from policydist.language.tasks.procedural import arithmetic, chain, countdown, logic, multi
from policydist.language.tasks.procedural.rows import MARKER, final_answer

__all__ = ["MARKER", "PROCEDURAL", "final_answer", "solution"]

PROCEDURAL: Mapping[str, Callable[..., Task]] = MappingProxyType(
    {
        "arithmetic": arithmetic.build,
        "countdown": countdown.build,
        "chain": chain.build,
        "logic": logic.build,
        "multi": multi.build,
    }
)
"""Task builders ``build(seed=0, train_size=4096, test_size=256, difficulty=…)`` by name."""


_WORKING: Mapping[str, Callable[[Row, np.random.Generator, float], str]] = {
    "arithmetic": arithmetic.working,
    "countdown": countdown.working,
    "chain": chain.working,
    "logic": logic.working,
    "multi": multi.working,
}


def solution(name: str, row: Row, rng: np.random.Generator, slip: float = 0.0) -> str:
    """A worked solution of a row of task ``name``, as one would write it for supervised training.

    ``slip`` is the probability (0 to 1) that a step goes wrong and the rest builds on it: 0 gives right solutions only.

    Raises:
        UsageError: for an unknown task.
    """
    if name not in _WORKING:
        raise UsageError(f"unknown task {name!r}: {nearest(name, _WORKING)}")
    return _WORKING[name](row, rng, slip)
