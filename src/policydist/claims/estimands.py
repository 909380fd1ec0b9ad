"""What a rule looks at: a number made from the unit scores of one or more arms.

An estimand turns scores into *components* ``[k, n]`` per stratum and says how resampled components become one number.
``aggregate`` is how units are summarised: ``mean``, ``median`` (of the paired contrast) or ``iqm`` (each arm's
interquartile
mean over all unit and stratum scores, then the contrast of those).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from policydist.claims.statistics import Aggregate, Array, correlation, slope
from policydist.claims.statistics import aggregate as summarise

Scores = Callable[[str, str], Array]  # (metric, arm) -> scores of one stratum, [n] or [n, inner]


class Estimand(Protocol):
    """The interface that the judge uses; see the classes below."""

    def describe(self) -> str:
        """One line for the record."""
        ...

    def uses(self) -> set[tuple[str, str]]:
        """The (metric, arm) pairs it reads."""
        ...

    def components(self, scores: Scores, how: Aggregate) -> Array:
        """Components ``[k, n]`` or ``[k, n, inner]`` of one stratum."""
        ...

    def statistic(self, sample: Array, how: Aggregate) -> Array:
        """The number of each resample: ``[k, r, n]`` to ``[r]``."""
        ...

    def exact_test(self) -> bool:
        """Whether `contrasts` are there, so that few units can be judged by exact sign flips."""
        ...

    def contrasts(self, scores: Scores) -> Array | None:
        """One number a unit whose centre is the estimand, for exact tests; None where there is no such number."""
        ...


@dataclass(frozen=True)
class Contrast:
    """``sum_a weight_a * metric(a)``: a single arm, a difference, a difference of differences, ``a - 0.5 b``."""

    metric: str
    weights: Mapping[str, float]

    def describe(self) -> str:
        terms = [f"{'+' if w > 0 else '-'} {'' if abs(w) == 1 else f'{abs(w):g}*'}{a}" for a, w in self.weights.items()]
        return f"{self.metric}: {' '.join(terms).removeprefix('+ ')}"

    def uses(self) -> set[tuple[str, str]]:
        return {(self.metric, arm) for arm in self.weights}

    def components(self, scores: Scores, how: Aggregate) -> Array:
        weighted = np.stack([weight * scores(self.metric, arm) for arm, weight in self.weights.items()])
        return weighted if how == "iqm" else weighted.sum(axis=0, keepdims=True)

    def statistic(self, sample: Array, how: Aggregate) -> Array:
        total: Array = summarise(sample, how).sum(axis=0)
        return total

    def exact_test(self) -> bool:
        return True

    def contrasts(self, scores: Scores) -> Array | None:
        total: Array = self.components(scores, "mean")[0]
        return total


def value(metric: str, arm: str) -> Contrast:
    """One arm by itself."""
    return Contrast(metric, {arm: 1.0})


def difference(metric: str, arm: str, baseline: str, factor: float = 1.0) -> Contrast:
    """``arm - factor * baseline``, paired by unit."""
    return Contrast(metric, {arm: 1.0, baseline: -factor})


@dataclass(frozen=True)
class LogRatio:
    """``log((arm + shift) / (baseline + shift))`` per unit: costs, times, nodes, perplexities. Not finite for scores
    <= -shift.
    """

    metric: str
    arm: str
    baseline: str
    shift: float = 0.0

    def describe(self) -> str:
        shift = f" (shift {self.shift:g})" if self.shift else ""
        return f"log {self.metric}: {self.arm} / {self.baseline}{shift}"

    def uses(self) -> set[tuple[str, str]]:
        return {(self.metric, self.arm), (self.metric, self.baseline)}

    def components(self, scores: Scores, how: Aggregate) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            logs = np.log(np.stack([scores(self.metric, a) + self.shift for a in (self.arm, self.baseline)]))
        signed = logs * np.array([1.0, -1.0]).reshape((2,) + (1,) * (logs.ndim - 1))
        return np.asarray(signed if how == "iqm" else signed.sum(axis=0, keepdims=True))

    def statistic(self, sample: Array, how: Aggregate) -> Array:
        total: Array = summarise(sample, how).sum(axis=0)
        return total

    def exact_test(self) -> bool:
        return True

    def contrasts(self, scores: Scores) -> Array | None:
        total: Array = self.components(scores, "mean")[0]
        return total


@dataclass(frozen=True)
class RatioOfMeans:
    """``mean(arm) / mean(baseline)`` over units, for quantities that add up (variances, counts); metrics may differ."""

    metric: str
    arm: str
    baseline: str
    baseline_metric: str | None = None

    def describe(self) -> str:
        return f"ratio of means: {self.metric} of {self.arm} / {self.baseline_metric or self.metric} of {self.baseline}"

    def uses(self) -> set[tuple[str, str]]:
        return {(self.metric, self.arm), (self.baseline_metric or self.metric, self.baseline)}

    def components(self, scores: Scores, how: Aggregate) -> Array:
        return np.stack([scores(self.metric, self.arm), scores(self.baseline_metric or self.metric, self.baseline)])

    def statistic(self, sample: Array, how: Aggregate) -> Array:
        top, bottom = summarise(sample, how)
        return np.asarray(top / bottom)

    def exact_test(self) -> bool:
        return False

    def contrasts(self, scores: Scores) -> Array | None:
        return None


@dataclass(frozen=True)
class Trend:
    """How a metric moves along arms placed at ``levels``: slope, or Spearman correlation, with the level.

    ``of="units"`` takes the trend of each unit and averages; ``of="means"`` takes the trend of the mean curve.
    ``minus`` is
    subtracted first: one baseline arm, or one for each level ("the gain over GRPO grows with H0").
    """

    metric: str
    levels: Mapping[str, float]
    kind: Literal["slope", "spearman"] = "slope"
    minus: str | Mapping[str, str] | None = None
    of: Literal["units", "means"] = "units"

    def describe(self) -> str:
        gain = "" if self.minus is None else " minus baseline"
        return f"{self.kind} of {self.metric}{gain} over {', '.join(self.levels)} ({self.of})"

    def _baseline(self, arm: str) -> str | None:
        return self.minus.get(arm) if isinstance(self.minus, Mapping) else self.minus

    def uses(self) -> set[tuple[str, str]]:
        arms = {*self.levels, *filter(None, map(self._baseline, self.levels))}
        return {(self.metric, arm) for arm in arms}

    def _curve(self, scores: Scores) -> Array:
        rows = []
        for arm in self.levels:
            base = self._baseline(arm)
            rows.append(scores(self.metric, arm) - (scores(self.metric, base) if base else 0.0))
        return np.stack(rows)

    def _trend(self, curve: Array) -> Array:
        x = np.array(list(self.levels.values()), dtype=float)
        if self.kind == "slope":
            return slope(x, curve)
        return correlation(x.reshape((-1,) + (1,) * (curve.ndim - 1)), curve, ranks=True, axis=0)

    def components(self, scores: Scores, how: Aggregate) -> Array:
        curve = self._curve(scores)
        return self._trend(curve)[None] if self.of == "units" else curve

    def statistic(self, sample: Array, how: Aggregate) -> Array:
        return summarise(sample[0], how) if self.of == "units" else self._trend(summarise(sample, how))

    def exact_test(self) -> bool:
        return self.of == "units"

    def contrasts(self, scores: Scores) -> Array | None:
        return self._trend(self._curve(scores)) if self.of == "units" else None


@dataclass(frozen=True)
class Correlation:
    """Correlation over units between two metrics of one arm ("energy ranks error")."""

    x: str
    y: str
    arm: str
    kind: Literal["spearman", "pearson"] = "spearman"

    def describe(self) -> str:
        return f"{self.kind} correlation of {self.x} and {self.y} in {self.arm}"

    def uses(self) -> set[tuple[str, str]]:
        return {(self.x, self.arm), (self.y, self.arm)}

    def components(self, scores: Scores, how: Aggregate) -> Array:
        return np.stack([scores(self.x, self.arm), scores(self.y, self.arm)])

    def statistic(self, sample: Array, how: Aggregate) -> Array:
        return correlation(sample[0], sample[1], ranks=self.kind == "spearman")

    def exact_test(self) -> bool:
        return False

    def contrasts(self, scores: Scores) -> Array | None:
        return None
