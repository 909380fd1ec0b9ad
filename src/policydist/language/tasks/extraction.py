"""Finding the final answer in a response that may hold working, prose or LaTeX around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from policydist.errors import UsageError, nearest

AUTO = ("tag", "boxed", "hash", "marker", "last_line")
"""The ways tried in turn by default: an explicit mark wins over position."""

MARKERS = ("final answer is", "answer is", "final answer:", "answer:")

LONGEST = 20_000
r"""Only this many characters at the end of a response are looked at; final answers stand there."""


def extract_answer(text: str, ways: Sequence[str] = AUTO) -> str:
    r"""The final answer of a response by the first of ``ways`` that finds one, stripped; empty when none does.

    ``tag``: the last ``<answer>…</answer>``; ``boxed``: the last ``\boxed{…}`` with balanced braces; ``hash``: the rest
    of the line after the last ``####``; ``marker``: likewise after the last "answer is" or "answer:"; ``marker:TEXT``:
    likewise after the last TEXT; ``last_line``: the last line that is not blank; ``all``: the whole response.

    Raises:
        UsageError: for an unknown way.
    """
    tail = text[-LONGEST:]
    for way in ways:
        found = _finder(way)(tail)
        if found is not None and found.strip():
            return found.strip()
    return ""


def check_ways(ways: Sequence[str]) -> tuple[str, ...]:
    """The ways themselves, known to be valid; one string stands for a sequence of one.

    Raises:
        UsageError: for an unknown way.
    """
    chosen = (ways,) if isinstance(ways, str) else tuple(ways)
    for way in chosen:
        _finder(way)
    return chosen


def last_boxed(text: str) -> str | None:
    r"""The content of the last ``\boxed{…}`` or ``\fbox{…}`` whose braces close, found in one pass."""
    starts = {match.end() for match in re.finditer(r"\\(?:boxed|fbox)\s*\{", text)}
    opened: list[int] = []
    last = (-1, -1)
    for brace in re.finditer(r"[{}]", text):
        if brace.group() == "{":
            opened.append(brace.end())
        elif opened and (start := opened.pop()) in starts:
            last = max(last, (start, brace.start()))
    return text[last[0] : last[1]] if last[0] >= 0 else None


def _last_tag(text: str) -> str | None:
    start = text.rfind("<answer>")
    end = text.find("</answer>", start)
    return text[start + len("<answer>") : end] if start >= 0 and end >= 0 else None


def _after_last(text: str, mark: str) -> str | None:
    """The rest of the line after the last ``mark``, in any case, without a colon before or a full stop behind."""
    start = text.casefold().rfind(mark.casefold()) if len(text.casefold()) == len(text) else text.rfind(mark)
    if start < 0:
        return None
    rest = text[start + len(mark) :].lstrip(" \t:*").split("\n", 1)[0]
    return rest.rstrip(" \t*").removesuffix(".").rstrip(" \t*")


def _after_marker(text: str) -> str | None:
    """After whichever usual marker ends last."""
    lowered = text.lower()
    ends = {mark: lowered.rfind(mark) + len(mark) for mark in MARKERS if mark in lowered}
    return _after_last(text, max(ends, key=lambda mark: ends[mark])) if ends else None


def _last_line(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else None


_FINDERS: dict[str, Callable[[str], str | None]] = {
    "tag": _last_tag,
    "boxed": last_boxed,
    "hash": lambda text: _after_last(text, "####"),
    "marker": _after_marker,
    "last_line": _last_line,
    "all": lambda text: text,
}


def _finder(way: str) -> Callable[[str], str | None]:
    if way.startswith("marker:") and len(way) > len("marker:"):
        return lambda text: _after_last(text, way.removeprefix("marker:"))
    if way not in _FINDERS:
        raise UsageError(f"unknown answer extraction {way!r}: {nearest(way, [*_FINDERS, 'marker:TEXT'])}")
    return _FINDERS[way]
