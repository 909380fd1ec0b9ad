"""Interval estimates and tests of the claims: bootstrap over units, exact sign flips, proportions, trends, several
claims.

Arrays called ``parts`` are shaped ``[k, n]`` (k components, n units) or ``[k, n, m]`` (m inner draws a unit), one a
stratum.
A *statistic* maps resampled components ``[k, r, n]`` to ``[r]`` numbers, so one pass over index arrays serves every
estimand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Statistic = Callable[[Array], Array]
Aggregate = Literal["mean", "median", "iqm"]

RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
_CHUNK_ELEMENTS = 4_000_000  # bounds the memory of one batch of resamples to about 32 MB a component


def bootstrap(
    parts: Sequence[Array], statistic: Statistic, resamples: int = RESAMPLES, seed: int = BOOTSTRAP_SEED
) -> Array:
    """Bootstrap replicates ``[resamples]`` of ``statistic``; units are redrawn inside each stratum, then inner draws
    inside units.

    Components share the drawn units, so contrasts of arms stay paired.

    Raises:
        ValueError: if a stratum has no units or strata differ in the number of components.
    """
    if not parts or any(part.shape[1] == 0 for part in parts) or len({part.shape[0] for part in parts}) != 1:
        raise ValueError("every stratum needs units, and the same components")
    rng = np.random.default_rng(seed)
    elements = sum(part[0].size for part in parts)
    chunk = max(1, min(resamples, _CHUNK_ELEMENTS // max(elements, 1)))
    replicates = []
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        replicates.append(statistic(np.concatenate([_redraw(part, count, rng) for part in parts], axis=-1)))
    return np.concatenate(replicates)


def _redraw(part: Array, count: int, rng: np.random.Generator) -> Array:
    units = rng.integers(part.shape[1], size=(count, part.shape[1]))
    if part.ndim == 2:
        return part[:, units]
    inner = rng.integers(part.shape[2], size=(count, part.shape[1], part.shape[2]))
    drawn: Array = part[:, units[..., None], inner].mean(axis=-1)
    return drawn


def evaluate(parts: Sequence[Array], statistic: Statistic) -> float:
    """The statistic of the observed data itself."""
    observed = np.concatenate([part if part.ndim == 2 else part.mean(axis=-1) for part in parts], axis=-1)
    return float(statistic(observed[:, None, :])[0])


def percentile_interval(replicates: Array, level: float) -> tuple[float, float]:
    """Central percentile interval of bootstrap replicates."""
    tail = (1 - level) / 2
    low, high = np.quantile(replicates, [tail, 1 - tail])
    return float(low), float(high)


def aggregate(values: Array, how: Aggregate) -> Array:
    """Mean, median or interquartile mean (middle half of the sorted values) along the last axis."""
    if how == "mean":
        return np.asarray(values.mean(axis=-1))
    if how == "median":
        return np.asarray(np.median(values, axis=-1))
    return interquartile_mean(values)


def interquartile_mean(values: ArrayLike) -> Array:
    """Mean of the values left after cutting ``floor(n/4)`` from either end, along the last axis
    (`scipy.stats.trim_mean`).
    """
    from scipy.stats import trim_mean

    return np.asarray(trim_mean(np.asarray(values, dtype=float), 0.25, axis=-1))


def probability_of_improvement(contrasts: ArrayLike) -> Array:
    """Share of paired contrasts above zero, ties counted half, along the last axis."""
    values = np.asarray(contrasts, dtype=float)
    return np.asarray(((values > 0) + 0.5 * (values == 0)).mean(axis=-1))


def sign_flip(
    contrasts: ArrayLike, center: float = 0.0, side: Literal["greater", "less", "two-sided"] = "greater"
) -> float:
    """Exact p-value of "the contrasts are symmetric about ``center``" over all 2^n sign patterns, n <= 16.

    The smallest value is 2^-n on one side, so fewer than five units never reach 0.05.

    Raises:
        ValueError: for no contrasts or more than 16.
    """
    values = np.asarray(contrasts, dtype=float) - center
    if not 1 <= values.size <= 16:
        raise ValueError(f"exact sign flips need 1 to 16 contrasts, got {values.size}")
    signs = 1 - 2 * ((np.arange(2**values.size)[:, None] >> np.arange(values.size)) & 1)
    means, observed = signs @ values / values.size, values.mean()
    slack = 1e-12 * np.abs(values).sum()  # sums in another order differ by rounding; such patterns are ties
    if side == "two-sided":
        return float(np.mean(np.abs(means) >= abs(observed) - slack))
    return float(np.mean(means >= observed - slack if side == "greater" else means <= observed + slack))


def bootstrap_p(replicates: Array, bound: float, side: Literal["greater", "less"] = "greater") -> float:
    """One-sided bootstrap p-value of "the effect is not beyond ``bound``", never zero."""
    against = np.sum(replicates <= bound) if side == "greater" else np.sum(replicates >= bound)
    return float((against + 1) / (replicates.size + 1))


def wilson(successes: int, trials: int, level: float) -> tuple[float, float]:
    """Wilson score interval of a proportion."""
    from scipy.stats import binomtest

    interval = binomtest(successes, trials).proportion_ci(confidence_level=level, method="wilson")
    return float(interval.low), float(interval.high)


def shifted_geometric_mean(values: ArrayLike, shift: float) -> float:
    """``exp(mean(log(v + shift))) - shift``: the usual average of nodes (shift 10) and seconds (shift 1).

    Raises:
        ValueError: if a value is not above ``-shift``.
    """
    shifted = np.asarray(values, dtype=float) + shift
    if (shifted <= 0).any():
        raise ValueError(f"shifted geometric mean needs values above {-shift}")
    return float(np.exp(np.log(shifted).mean()) - shift)


def slope(x: ArrayLike, y: Array) -> Array:
    """Least-squares slope of ``y`` (levels on the first axis) on ``x``."""
    centred = np.asarray(x, dtype=float) - np.mean(np.asarray(x, dtype=float))
    return np.asarray(np.tensordot(centred, y, axes=1) / (centred**2).sum())


def correlation(x: Array, y: Array, ranks: bool, axis: int = -1) -> Array:
    """Pearson, or with ``ranks`` Spearman (mid-ranks), correlation along ``axis``; zero where one side is constant."""
    from scipy.stats import rankdata

    x, y = np.broadcast_arrays(x, y)
    if ranks:
        x, y = rankdata(x, axis=axis), rankdata(y, axis=axis)
    x = x - x.mean(axis=axis, keepdims=True)
    y = y - y.mean(axis=axis, keepdims=True)
    scale = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    product = (x * y).sum(axis=axis)
    return np.asarray(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0))


def simultaneous_level(claims: int, level: float = 0.95) -> float:
    """Level ``1 - (1 - level)/m`` of each of ``claims`` secondary claims (Bonferroni, the simple form of Holm)."""
    return 1 - (1 - level) / max(claims, 1)


def equivalence_level(level: float) -> float:
    """Level of the interval that two one-sided tests look at: twice the tail, 0.90 for 0.95."""
    return 1 - 2 * (1 - level)


def benjamini_hochberg(p_values: dict[str, float], rate: float = 0.10) -> list[str]:
    """Names whose p-values survive at false-discovery rate ``rate``, smallest p first."""
    from scipy.stats import false_discovery_control

    if not p_values:
        return []
    names = sorted(p_values, key=lambda name: p_values[name])
    adjusted = false_discovery_control([p_values[name] for name in names])
    return [name for name, p in zip(names, adjusted, strict=True) if p <= rate]


def units_needed(spread: float, effect: float) -> int:
    """Units for 80 % power at two-sided 5 %: ``(2.8 s / delta)^2``, rounded up, at least 2.

    Raises:
        ValueError: if ``effect`` is zero.
    """
    if effect == 0:
        raise ValueError("no number of units shows an effect of zero")
    return max(2, math.ceil((2.8 * spread / effect) ** 2))


def power(spread: float, effect: float, units: int, level: float = 0.95) -> float:
    """Probability that a two-sided normal interval over ``units`` contrasts excludes zero on the right side."""
    from scipy.stats import norm

    if spread == 0:
        return 1.0
    quantile: Any = norm.ppf(1 - (1 - level) / 2)
    return float(norm.cdf(abs(effect) * math.sqrt(units) / spread - quantile))
