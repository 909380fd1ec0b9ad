"""Rubrics: a weighted checklist that stands in the row itself.

A rubric is a list of criteria, each a mapping with ``kind``, ``value`` and, if wanted, ``weight`` (default 1) and ``text``,
the criterion in words, for methods that tell the policy what it missed:

    {"kind": "keyword",     "value": "therefore"}          the word occurs, in any case, as a whole word
    {"kind": "regex",       "value": "^Answer: \\\\d+$"}      the pattern is found (lines are anchored by ^ and $)
    {"kind": "min_words",   "value": 20}                   at least so many words
    {"kind": "max_words",   "value": 80, "weight": 0.5}    at most so many words
    {"kind": "min_chars",   "value": 20}                   at least so many characters, likewise ``max_chars``

The score is the sum of the weights of met criteria over the sum of the positive weights, cut to [0, 1]. A negative
weight is a penalty: meeting the criterion takes points away. Patterns come from the row's author, who is trusted to
avoid patterns that backtrack for ever; they see at most the first 20,000 characters of a response.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from policydist.errors import PolicydistError, nearest

LONGEST = 20_000


@dataclass(frozen=True)
class Criterion:
    """One line of a checklist."""

    kind: str
    value: str | int
    weight: float = 1.0
    text: str = ""

    @property
    def words(self) -> str:
        """The criterion in words: its own ``text``, or what its kind says."""
        return self.text or _WORDS[self.kind].format(value=self.value)


_WORDS: Mapping[str, str] = {
    "keyword": 'mentions "{value}"',
    "regex": "matches the pattern {value}",
    "min_words": "has at least {value} words",
    "max_words": "has at most {value} words",
    "min_chars": "has at least {value} characters",
    "max_chars": "has at most {value} characters",
}

_TESTS: Mapping[str, Callable[[str, Any], bool]] = {
    "keyword": lambda text, value: re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text, re.IGNORECASE) is not None,
    "regex": lambda text, value: re.search(value, text, re.MULTILINE) is not None,
    "min_words": lambda text, value: len(text.split()) >= value,
    "max_words": lambda text, value: len(text.split()) <= value,
    "min_chars": lambda text, value: len(text) >= value,
    "max_chars": lambda text, value: len(text) <= value,
}


def check_rubric(rubric: Any) -> list[Criterion]:
    """The criteria of a rubric as read from a file.

    Raises:
        PolicydistError: naming the criterion and what is wrong with it.
    """
    if not isinstance(rubric, list | tuple) or not rubric:
        raise PolicydistError("a rubric is a list of criteria such as {'kind': 'keyword', 'value': 'therefore'}")
    criteria = [_criterion(number, item) for number, item in enumerate(rubric, 1)]
    if not any(criterion.weight > 0 for criterion in criteria):
        raise PolicydistError("a rubric needs at least one criterion with a positive weight")
    return criteria


def rubric_verdicts(text: str, criteria: list[Criterion]) -> list[bool]:
    """Which criteria hold of the text; for a penalty (negative weight) that is the bad case."""
    head = text[:LONGEST]
    return [_TESTS[criterion.kind](head, criterion.value) for criterion in criteria]


def rubric_score(text: str, criteria: list[Criterion]) -> float:
    """The weighted share of met criteria, in [0, 1]."""
    verdicts = zip(criteria, rubric_verdicts(text, criteria), strict=True)
    met = sum(criterion.weight for criterion, holds in verdicts if holds)
    return min(1.0, max(0.0, met / sum(criterion.weight for criterion in criteria if criterion.weight > 0)))


def _criterion(number: int, item: Any) -> Criterion:
    where = f"rubric criterion {number}"
    if not isinstance(item, Mapping):
        raise PolicydistError(f"{where} is a {type(item).__name__}; it must be a mapping with kind and value")
    unknown = set(item) - {"kind", "value", "weight", "text"}
    if unknown:
        raise PolicydistError(
            f"{where}: unknown key {sorted(map(str, unknown))[0]!r}; known: kind, value, weight, text"
        )
    kind, value, weight, text = (item.get(name) for name in ("kind", "value", "weight", "text"))
    if text is not None and not isinstance(text, str):
        raise PolicydistError(f"{where}: text is a {type(text).__name__}; it must be words")
    if kind not in _TESTS:
        raise PolicydistError(f"{where}: unknown kind {kind!r}: {nearest(str(kind), _TESTS)}")
    weight = 1.0 if weight is None else weight
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) < float("inf"):
        raise PolicydistError(f"{where}: weight {weight!r} is not a finite number")
    if kind in ("keyword", "regex"):
        if not isinstance(value, str) or not value:
            raise PolicydistError(f"{where}: {kind} needs a text as value, not {value!r}")
        try:
            re.compile(value if kind == "regex" else "")
        except re.error as error:
            raise PolicydistError(f"{where}: {value!r} is no regular expression: {error}") from error
    elif isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PolicydistError(f"{where}: {kind} needs a whole number as value, not {value!r}")
    return Criterion(str(kind), value, float(weight), text or "")
