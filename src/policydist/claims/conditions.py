"""What an estimate and its interval must satisfy, and the verdict that each outcome earns.

Every condition follows one table: the whole interval where it should be is `reproduced`; the right sign without the
size is `direction_only`; an interval that settles nothing is `not_separated`; one inside the equivalence margin is
`null`; one
that lies wholly on the wrong side is `contradicted`. Sign is looked at before size: an effect that is small but
certainly
reversed is `contradicted`, not `null`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from policydist.claims.statistics import Array, sign_flip, units_needed

Direction = Literal[">", "<"]
ORDER = ("reproduced", "direction_only", "not_separated", "null", "contradicted", "invalid")
"""Verdicts from best to worst; a claim gets the worst verdict of its must rules, the first such rule giving the
reason.
"""

LEAST = 5  # fewer contrasts never reach p <= 0.05 in a one-sided exact test
SMALL = 10  # below this many contrasts the exact sign-flip test must agree with the bootstrap


@dataclass(frozen=True)
class Evidence:
    """What the data say about one estimand: the estimate, its interval, the wider-tailed one for equivalence, the
    contrasts.
    """

    estimate: float
    interval: tuple[float, float]
    equivalence_interval: tuple[float, float]
    alpha: float
    contrasts: Array | None
    values: Array

    def exact(self) -> Array | None:
        """The contrasts, where there are so few that an exact test has to agree."""
        return self.contrasts if self.contrasts is not None and self.contrasts.size < SMALL else None

    def above(self, bound: float, interval: tuple[float, float] | None = None) -> bool:
        """The interval lies wholly above ``bound``; with few units sign flips agree (one-sided, p <= alpha)."""
        few = self.exact()
        clear = (interval or self.interval)[0] > bound
        return clear and (few is None or sign_flip(few, bound, "greater") <= self.alpha)

    def below(self, bound: float, interval: tuple[float, float] | None = None) -> bool:
        """The interval lies wholly below ``bound``; with few units sign flips about it agree."""
        few = self.exact()
        clear = (interval or self.interval)[1] < bound
        return clear and (few is None or sign_flip(few, bound, "less") <= self.alpha)

    def within(self, low: float, high: float) -> bool:
        """Two one-sided tests: the equivalence interval lies strictly between the bounds."""
        return self.above(low, self.equivalence_interval) and self.below(high, self.equivalence_interval)


class Condition(Protocol):
    """The interface that the judge uses; see the classes below."""

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        """Verdict, and one line why it is not `reproduced` (empty if it is)."""
        ...

    def threshold(self) -> dict[str, object]:
        """The threshold as the record writes it."""
        ...

    def needs_interval(self) -> bool:
        """Whether the interval, and so a number of units, matters."""
        ...


def _more(evidence: Evidence, gap: float) -> str:
    """The next experiment: how many units would settle an effect of size ``gap``."""
    spread = (
        float(evidence.contrasts.std(ddof=1))
        if evidence.contrasts is not None and evidence.contrasts.size > 1
        else math.nan
    )
    if not math.isfinite(spread) or spread == 0 or gap == 0 or not math.isfinite(gap):
        return "more units would decide"
    return f"about {max(units_needed(spread, gap), LEAST)} units would decide"


def _text(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.4g}, {interval[1]:.4g}]"


@dataclass(frozen=True)
class Beyond:
    """An effect away from zero: the interval wholly beyond ``min_effect`` in ``direction``. The form for most claims.

    ``min_estimate`` asks more of the estimate alone ("ratio at most one half, interval below one"). ``margin`` is the
    equivalence margin of a `null`; without it a null is called when the interval holds zero and is no wider than
    ``min_effect``.
    All three are sizes, so never negative, whichever the direction.
    """

    direction: Direction
    min_effect: float = 0.0
    min_estimate: float = 0.0
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.direction not in (">", "<") or min(self.min_effect, self.min_estimate, self.margin or 0.0) < 0:
            raise ValueError("Beyond: direction is > or <, and min_effect, min_estimate and margin are sizes >= 0")

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        sign = 1.0 if self.direction == ">" else -1.0

        def ahead(size: float) -> bool:
            return evidence.above(size) if sign > 0 else evidence.below(-size)

        shown = f"{evidence.estimate:.4g} {_text(evidence.interval)}"
        if ahead(self.min_effect) and sign * evidence.estimate >= self.min_estimate:
            return "reproduced", ""
        if ahead(0.0):
            short = max(self.min_effect, self.min_estimate)
            return (
                "direction_only",
                f"right sign, but {shown} is not beyond {sign * short:g}; {self._next(evidence, sign)}",
            )
        if evidence.below(0.0) if sign > 0 else evidence.above(0.0):
            return "contradicted", f"{shown} lies on the other side of zero; look for the setting where the sign turns"
        low, high = evidence.interval
        if self.margin is not None and evidence.within(-self.margin, self.margin):
            return "null", f"{shown} lies inside the margin {self.margin:g}; a stronger manipulation would decide"
        if self.margin is None and low <= 0 <= high and high - low <= self.min_effect:
            return (
                "null",
                f"{shown} holds zero and is narrower than {self.min_effect:g}; a stronger manipulation would decide",
            )
        return "not_separated", f"{shown} does not tell; {_more(evidence, self.min_effect or abs(evidence.estimate))}"

    def _next(self, evidence: Evidence, sign: float) -> str:
        return _more(evidence, sign * evidence.estimate - max(self.min_effect, self.min_estimate))

    def threshold(self) -> dict[str, object]:
        row: dict[str, object] = {
            "direction": self.direction,
            "min_effect": self.min_effect,
            "equivalence_margin": self.margin,
        }
        return row | ({"min_estimate": self.min_estimate} if self.min_estimate else {})

    def needs_interval(self) -> bool:
        return True


@dataclass(frozen=True)
class Bound:
    """A level or a non-inferiority limit: the interval wholly above (``>``) or below (``<``) ``bound``, of any sign."""

    direction: Direction
    bound: float

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        passed, failed = evidence.above(self.bound), evidence.below(self.bound)
        if self.direction == "<":
            passed, failed = failed, passed
        if passed:
            return "reproduced", ""
        shown = f"{evidence.estimate:.4g} {_text(evidence.interval)}"
        if failed:
            return (
                "contradicted",
                f"{shown} lies on the wrong side of {self.bound:g}; another setting, not more units, would decide",
            )
        return "not_separated", f"{shown} holds {self.bound:g}; {_more(evidence, evidence.estimate - self.bound)}"

    def threshold(self) -> dict[str, object]:
        return {"direction": self.direction, "bound": self.bound, "min_effect": None, "equivalence_margin": None}

    def needs_interval(self) -> bool:
        return True


@dataclass(frozen=True)
class Inside:
    """Equivalence ("no difference", "lands on its target"): two one-sided tests put the effect between ``low`` and
    ``high``.

    The interval looked at has twice the tail (0.90 for a 0.95 claim); ``strict`` takes the claim's own interval
    instead.
    ``estimate_low``/``estimate_high`` narrow what the estimate alone may be.
    """

    low: float
    high: float
    strict: bool = False
    estimate_low: float = -math.inf
    estimate_high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"Inside: low {self.low} must lie below high {self.high}")

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        if self.strict:
            inside = evidence.above(self.low) and evidence.below(self.high)
        else:
            inside = evidence.within(self.low, self.high)
        shown = f"{evidence.estimate:.4g} {_text(evidence.interval if self.strict else evidence.equivalence_interval)}"
        if evidence.above(self.high) or evidence.below(self.low):
            return (
                "contradicted",
                f"{shown} lies outside [{self.low:g}, {self.high:g}]; another setting, not more units, would decide",
            )
        if not inside:
            gap = min(self.high - evidence.estimate, evidence.estimate - self.low)
            return "not_separated", f"{shown} reaches over [{self.low:g}, {self.high:g}]; {_more(evidence, gap)}"
        if not self.estimate_low <= evidence.estimate <= self.estimate_high:
            return (
                "direction_only",
                f"{shown} is inside, but the estimate is outside [{self.estimate_low:g}, {self.estimate_high:g}]",
            )
        return "reproduced", ""

    def threshold(self) -> dict[str, object]:
        margin = self.high if self.low == -self.high else None
        return {
            "direction": "inside",
            "low": self.low,
            "high": self.high,
            "min_effect": None,
            "equivalence_margin": margin,
        }

    def needs_interval(self) -> bool:
        return True


@dataclass(frozen=True)
class Intersects:
    """A weak calibration check: the interval has a point in common with ``[low, high]`` (coverage in [0.90, 0.97])."""

    low: float
    high: float

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        if evidence.interval[1] >= self.low and evidence.interval[0] <= self.high:
            return "reproduced", ""
        return (
            "contradicted",
            f"{evidence.estimate:.4g} {_text(evidence.interval)} misses [{self.low:g}, {self.high:g}]",
        )

    def threshold(self) -> dict[str, object]:
        return {
            "direction": "intersects",
            "low": self.low,
            "high": self.high,
            "min_effect": None,
            "equivalence_margin": None,
        }

    def needs_interval(self) -> bool:
        return True


@dataclass(frozen=True)
class Every:
    """An exact identity or a theorem: the number of *every* unit lies in ``[low, high]``. One exception contradicts
    it.
    """

    low: float = -math.inf
    high: float = math.inf

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        outside = (evidence.values < self.low) | (evidence.values > self.high)
        if not outside.any():
            return "reproduced", ""
        worst = max(evidence.values[outside], key=lambda v: max(self.low - v, v - self.high))
        return (
            "contradicted",
            f"{int(outside.sum())} of {outside.size} units outside [{self.low:g}, {self.high:g}], worst {worst:.4g}",
        )

    def threshold(self) -> dict[str, object]:
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"direction": "every", "low": low, "high": high, "min_effect": None, "equivalence_margin": None}

    def needs_interval(self) -> bool:
        return False


@dataclass(frozen=True)
class Point:
    """The estimate alone lies in ``[low, high]``, whatever its interval: sanity levels, deterministic results."""

    low: float = -math.inf
    high: float = math.inf

    def judge(self, evidence: Evidence) -> tuple[str, str]:
        if self.low <= evidence.estimate <= self.high:
            return "reproduced", ""
        return "contradicted", f"{evidence.estimate:.4g} is outside [{self.low:g}, {self.high:g}]"

    def threshold(self) -> dict[str, object]:
        low, high = (bound if math.isfinite(bound) else None for bound in (self.low, self.high))
        return {"direction": "point", "low": low, "high": high, "min_effect": None, "equivalence_margin": None}

    def needs_interval(self) -> bool:
        return False
