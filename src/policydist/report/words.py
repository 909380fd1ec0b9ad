"""Numbers, intervals, thresholds and times as short text, the same in terminal, HTML and Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

NOTHING = "–"
MINUS = "\N{MINUS SIGN}"


def number(value: Any) -> str:
    """Four significant digits; a dash where there is no number."""
    if value is None or isinstance(value, bool) or not isinstance(value, int | float):
        return NOTHING
    if not math.isfinite(value):
        return "not finite"
    if abs(value) >= 1000:
        return (f"{value:,.0f}" if abs(value) < 1e7 else f"{value:.3g}").replace("-", MINUS)
    return f"{value:.4g}".replace("-", MINUS)


def cited(text: str) -> str:
    """A record's own words for a reader, who has not the specification ("sheet") that claim files refer to."""
    return re.sub(r"\bsheet\b", "specification", re.sub(r" \(sheet [^)]*\)", "", text))


def interval(bounds: Sequence[float] | None) -> str:
    """``[low, high]``; a dash where there is none."""
    return NOTHING if bounds is None else f"[{number(bounds[0])}, {number(bounds[1])}]"


def share(value: float | None, bounds: Sequence[float] | None = None, sign: bool = False) -> str:
    """A share (accuracy, difference of accuracies) with three decimals, and its interval if there is one."""
    if value is None:
        return NOTHING
    text = f"{value:{'+' if sign else ''}.3f}"
    return (text if bounds is None else f"{text} [{bounds[0]:.3f}, {bounds[1]:.3f}]").replace("-", MINUS)


def short(value: float | None) -> str:
    """Three significant digits with k, M, G: token counts."""
    if value is None:
        return NOTHING
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def seconds(value: float | None) -> str:
    """A duration at the size people think in."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value < 10:
        return f"{value:.1f} s"
    if value < 600:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 36_000 else f"{value / 3600:.1f} h"


def threshold(data: Mapping[str, Any] | None) -> str:
    """What an interval must do for its rule to pass, in words; see `policydist.claims.conditions`."""
    if data is None:
        return NOTHING
    direction, low, high = data.get("direction"), data.get("low"), data.get("high")
    if direction in ("<", ">"):
        return _one_sided(data, direction)
    inside = _range(low, high)
    sentences = {
        "inside": f"within {inside}",
        "intersects": f"interval meets {inside}",
        "every": f"every unit {inside}",
        "point": f"estimate {inside}",
    }
    return sentences.get(str(direction)) or "  ".join(
        f"{key} {value}" for key, value in data.items() if value is not None
    )


def _one_sided(data: Mapping[str, Any], direction: str) -> str:
    if "bound" in data:
        return f"{direction} {number(data['bound'])}"
    up = direction == ">"
    text = f"{direction} {number((data.get('min_effect') or 0) * (1 if up else -1))}"
    least = least_estimate(data)
    return text if least is None else f"{text}, estimate {'≥' if up else '≤'} {number(least)}"


def _range(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return interval((low, high))
    if low is None and high is None:
        return "anywhere"
    return f"≥ {number(low)}" if high is None else f"≤ {number(high)}"


def passing_region(data: Mapping[str, Any] | None) -> tuple[float, float] | None:
    """The values that pass a rule, as ``(low, high)`` with infinities for open ends; None without a threshold."""
    if data is None:
        return None
    if data.get("direction") in ("<", ">"):
        up = data["direction"] == ">"
        edge = data["bound"] if "bound" in data else (data.get("min_effect") or 0.0) * (1 if up else -1)
        return (edge, math.inf) if up else (-math.inf, edge)
    low, high = data.get("low"), data.get("high")
    return (-math.inf if low is None else low, math.inf if high is None else high)


def least_estimate(data: Mapping[str, Any] | None) -> float | None:
    """What the estimate alone must reach, where a one-sided rule asks for more of it than of the interval."""
    size = (data or {}).get("min_estimate")
    return None if not size or data is None else float(size) * (1 if data["direction"] == ">" else -1)


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def cut(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis, in at most ``length`` characters."""
    return text if len(text) <= length else f"{text[: length - 1].rstrip()}…"
