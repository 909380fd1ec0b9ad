"""Reward functions of the tests: one that differs between responses of an untrained model, and faulty ones."""

from __future__ import annotations

from typing import Any


def has_digit(completions: list[str], **columns: Any) -> list[float]:
    """1 for a response with a digit below five in it."""
    return [float(any(letter in "01234" for letter in text)) for text in completions]


def even(completions: list[str], **columns: Any) -> list[float]:
    """1 for a response of an even number of characters."""
    return [float(len(text) % 2 == 0) for text in completions]


def always(completions: list[str], **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def never(completions: list[str], **columns: Any) -> list[float]:
    return [0.0] * len(completions)


def raises(completions: list[str], **columns: Any) -> list[float]:
    raise ValueError("no teacher today")


def nan(completions: list[str], **columns: Any) -> list[float]:
    return [float("nan")] * len(completions)


def short(completions: list[str], **columns: Any) -> list[float]:
    return [1.0] * (len(completions) - 1)


def words(completions: list[str], **columns: Any) -> Any:
    return ["good"] * len(completions)


def number(completions: list[str], **columns: Any) -> Any:
    return 1.0


def slow(completions: list[str], **columns: Any) -> list[float]:
    """As ``has_digit``, but so slow that a signal arrives during training."""
    import time

    time.sleep(0.3)
    return has_digit(completions)


UNREADABLE = 3
