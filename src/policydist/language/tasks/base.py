"""What a task is: rows with a prompt and whatever its grader needs, split into train and test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""One problem. ``prompt`` is a string or a list of chat messages; ``answer`` and further keys are the grader's."""

Grader = Callable[[Sequence[str], Sequence[Row]], Sequence[float]]
"""Rewards, one a response, from the decoded responses and the rows they answer."""


@dataclass(frozen=True)
class Task:
    """A set of verifiable problems.

    ``graders`` maps reward components to graders; the reward is their weighted sum (``weights`` defaults to 1 each).
    The first component is the task's accuracy, which evaluation reports. ``documents``: what a retriever may search to
    answer them; most tasks have none.
    """

    name: str
    train: Sequence[Row]
    test: Sequence[Row]
    graders: Mapping[str, Grader]
    weights: Mapping[str, float] | None = None
    max_new_tokens: int = 64
    documents: Sequence[str] = ()
