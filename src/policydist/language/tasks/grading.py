"""Graders: rewards for decoded responses, from the rows they answer.

Each function here takes options and returns a `Grader`. Graders look at text only; none runs or evaluates it. A row
that lacks what its grader needs is the user's mistake and raises; a response that cannot be understood earns 0.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from typing import Any

from policydist.errors import PolicydistError, UsageError
from policydist.language.tasks.base import Grader, Row
from policydist.language.tasks.expressions import OPERATORS, ExpressionError, evaluate_expression, numbers_used
from policydist.language.tasks.extraction import AUTO, check_ways, extract_answer
from policydist.language.tasks.rubrics import check_rubric, rubric_score

_NUMBER = re.compile(r"[-+]?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
_FRACTION = re.compile(r"([-+]?\d{1,30})\s*/\s*(\d{1,30})")
_LATEX_FRACTION = re.compile(r"([-+]?)\s*\\d?frac\s*\{\s*([-+]?\d{1,30})\s*\}\s*\{\s*(\d{1,30})\s*\}")
_LEADING = re.compile(r"\(?([a-z])(?:\)|[.:](?=\s|$)|$)")
_NAMED = re.compile(r"\b(?:option|choice|answer)\s+\(?([a-z])(?![\w'’])")
_LETTER = re.compile(r"(?<![\w'’])([a-z])(?![\w'’])")


def field(row: Row, name: str) -> Any:
    """A value that the grader needs.

    Raises:
        PolicydistError: naming the columns there are.
    """
    if row.get(name) is None:
        raise PolicydistError(f"the grader needs column {name!r}; the row has {', '.join(map(str, row)) or 'none'}")
    return row[name]


def exact_match(
    *,
    extraction: Sequence[str] = AUTO,
    ignore_case: bool = True,
    ignore_space: bool = True,
    ignore_punctuation: bool = True,
) -> Grader:
    """1 when the extracted answer equals ``answer`` (or one of its items, if it is a list), else 0.

    Both sides are normalised alike: letters folded, runs of white space made one space, and quotes, emphasis and
    closing punctuation stripped from the ends, never from within: 1.5 is not 15, -3 is not 3 and 5! is not 5.
    """
    ways = check_ways(extraction)

    def clean(text: str) -> str:
        text = text.casefold() if ignore_case else text
        text = " ".join(text.split()) if ignore_space else text
        return _trim(text) if ignore_punctuation else text

    def right(response: str, row: Row) -> bool:
        found = extract_answer(response, ways)
        return bool(found) and clean(found) in {clean(str(answer)) for answer in _accepted(row)}

    return _each(right)


def short_answer(*, extraction: Sequence[str] = ("tag",)) -> Grader:
    """1 when the extracted answer equals ``answer`` (or one of its items) as open-domain question answering counts it, else 0.

    Both sides in lower case, without punctuation, without the articles a, an and the, and with single blanks (SQuAD's
    normalisation, arXiv 1606.05250).
    """
    ways = check_ways(extraction)

    def clean(text: str) -> str:
        kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
        return " ".join(word for word in kept.split() if word not in ("a", "an", "the"))

    def right(response: str, row: Row) -> bool:
        found = clean(extract_answer(response, ways))
        return bool(found) and found in {clean(str(answer)) for answer in _accepted(row)}

    return _each(right)


def numeric(*, extraction: Sequence[str] = AUTO, tolerance: float = 1e-6) -> Grader:
    """1 when the last number of the extracted answer is within ``tolerance`` of ``answer``, else 0.

    The tolerance is relative, and absolute below 1. Thousands commas, exponents and the fractions ``3/4`` and
    ``\\frac{3}{4}`` are understood; units, ``$`` and ``%`` are passed over on both sides.
    """
    ways = check_ways(extraction)
    if not 0 <= tolerance < 1:
        raise UsageError(f"tolerance is {tolerance}; it must lie in [0, 1)")

    def right(response: str, row: Row) -> bool:
        found = last_number(extract_answer(response, ways))
        for answer in _accepted(row):
            wanted = float(answer) if isinstance(answer, int | float) else last_number(str(answer))
            if wanted is None or not math.isfinite(wanted):
                raise PolicydistError(
                    f"answer {str(answer)[:60]!r} holds no number; use grader=exact_match or mend the row"
                )
            if found is not None and abs(found - wanted) <= tolerance * max(1.0, abs(wanted)):
                return True
        return False

    return _each(right)


def math_verify_grader(*, seconds: float = 4.0) -> Grader:
    """1 when math-verify finds the response mathematically equal to ``answer`` (or one of its items), else 0.

    The library extracts and parses the answer itself (LaTeX, boxed, plain). It runs in a child process: safe on any
    thread, limited in memory, and killed after ``seconds``, which earns 0.
    """
    if not seconds >= 1:
        raise UsageError(f"seconds is {seconds}; math-verify needs at least 1")
    from policydist.language.tasks.math_checking import MathChecker

    checker = MathChecker(seconds=seconds)

    def right(response: str, row: Row) -> bool:
        return any(checker.equal(str(answer), response) for answer in _accepted(row))

    return _each(right)


def expression(
    *,
    extraction: Sequence[str] = AUTO,
    numbers: str = "numbers",
    target: str = "target",
    operators: Collection[str] = OPERATORS,
    use_all: bool = True,
) -> Grader:
    """1 for arithmetic that makes ``target`` out of ``numbers``, else 0.

    Each number is used exactly once, or at most once without ``use_all``. Where the answer is written as an equation,
    its left side counts. Evaluation is exact and bounded; see `expressions`.
    """
    ways = check_ways(extraction)

    def right(response: str, row: Row) -> bool:
        wanted, given = _given(row, target, numbers)
        text = extract_answer(response, ways).split("=")[0].replace("×", "*").replace("÷", "/").replace("−", "-")
        try:
            used = sorted(numbers_used(text))
            if not (used == given if use_all else _contained(used, given)):
                return False
            return evaluate_expression(text, operators=operators) == wanted
        except ExpressionError:
            return False

    return _each(right)


def choice(*, extraction: Sequence[str] = AUTO, choices: str = "choices") -> Grader:
    """1 when the response picks the right option of a multiple-choice question, else 0.

    ``answer`` is a letter, the option's number from 0, or, with column ``choices`` (a list of texts), the text itself.
    The response picks by the extracted answer's whole text, by a leading letter as in ``(B)`` or ``B. Paris``, by a
    letter after "option", "choice" or "answer", or by the only free-standing letter that is no word.
    """
    ways = check_ways(extraction)

    def right(response: str, row: Row) -> bool:
        options = [_trim(str(option).casefold()) for option in row.get(choices) or ()]
        wanted = _wanted(field(row, "answer"), options)
        return _picked(_trim(extract_answer(response, ways).casefold()), options) == wanted

    return _each(right)


def rubric(*, column: str = "rubric") -> Grader:
    """The weighted share of the criteria in the row's ``rubric`` that the response meets, in [0, 1]; see `rubrics`."""

    def grade(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
        return [
            rubric_score(response, check_rubric(field(row, column)))
            for response, row in zip(responses, rows, strict=True)
        ]

    return grade


def last_number(text: str) -> float | None:
    """The last number written in the text, or None."""
    fractions = [*_LATEX_FRACTION.finditer(text), *_FRACTION.finditer(text)]
    plain = list(_NUMBER.finditer(text))
    if fractions:
        last = max(fractions, key=lambda match: match.end())
        if not plain or plain[-1].end() <= last.end():
            *sign, top, bottom = last.groups()
            value = float(Fraction(int(top), int(bottom))) if int(bottom) else None
            return -value if value is not None and sign == ["-"] else value
    if not plain:
        return None
    value = float(plain[-1].group().replace(",", ""))
    return value if math.isfinite(value) else None


def _each(right: Callable[[str, Row], bool]) -> Grader:
    """A grader of 0 and 1 from a test of one response."""

    def grade(responses: Sequence[str], rows: Sequence[Row]) -> list[float]:
        return [float(right(response, row)) for response, row in zip(responses, rows, strict=True)]

    return grade


def _accepted(row: Row) -> Sequence[Any]:
    """The answers that count as right: ``answer``, or its items."""
    answer = field(row, "answer")
    return answer if isinstance(answer, list | tuple) else [answer]


def _trim(text: str) -> str:
    """Without quotes, emphasis and closing punctuation at the ends, unless nothing is left then."""
    marks = " \t\n\"'`*_$"
    return text.strip(marks).rstrip(".,;:?").strip(marks) or text.strip()


def _given(row: Row, target: str, numbers: str) -> tuple[Fraction, list[Any]]:
    """The target and the sorted numbers of a row."""
    try:
        return Fraction(str(field(row, target))), sorted(Fraction(str(number)) for number in field(row, numbers))
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise PolicydistError(f"columns {target!r} and {numbers!r} must hold a number and a list of numbers") from error


def _contained(used: Sequence[Any], given: Sequence[Any]) -> bool:
    """Whether the multiset ``used`` is part of the multiset ``given``."""
    return all(used.count(number) <= given.count(number) for number in used)


def _wanted(answer: Any, options: Sequence[str]) -> int:
    """The right option's number from 0."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        number = answer
    elif (text := _trim(str(answer).casefold())) in options:
        number = options.index(text)
    elif len(text) == 1 and text.isascii() and text.isalpha():
        number = ord(text) - ord("a")
    else:
        raise PolicydistError(f"answer {str(answer)[:60]!r} is no letter, option number or one of the row's choices")
    if number < 0 or (options and number >= len(options)):
        raise PolicydistError(f"answer {str(answer)[:60]!r} points outside the row's {len(options)} choices")
    return number


def _picked(found: str, options: Sequence[str]) -> int | None:
    """The option number that an extracted, folded answer picks, or None."""
    if found in options:
        return options.index(found)
    named = _LEADING.match(found) or _NAMED.search(found)
    if named is not None:
        return ord(named.group(1)) - ord("a")
    letters = [match.group(1) for match in _LETTER.finditer(found)]
    # "a" and "i" in running text are words.
    return ord(letters[0]) - ord("a") if len(letters) == 1 and letters[0] not in "ai" else None


GRADERS: Mapping[str, Callable[..., Grader]] = {
    "exact_match": exact_match,
    "short_answer": short_answer,
    "numeric": numeric,
    "math_verify": math_verify_grader,
    "expression": expression,
    "choice": choice,
    "rubric": rubric,
}
"""The graders that a command line can name."""
